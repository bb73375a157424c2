"""`sepo bench`: the contenders, the timing of rounds, and a real run from the command line."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from sepo.cli import main
from sepo.errors import SepoError
from sepo.hosts.llamafactory.bench.contenders import CONTENDERS, HOST_DPO, HOST_SIMPO, own_name, plan_contenders
from sepo.hosts.llamafactory.bench.recipe import check_keys, measured_recipe
from sepo.hosts.llamafactory.bench.report import loss_notes, table_rows
from sepo.hosts.llamafactory.bench.rounds import rotated, speeds, timed_rounds
from tests.support.recipes import BIN, environment, host_recipe, run, sepo_recipe, write

ROOT = Path(__file__).parents[3]
HOST_KEYS = (
    "stage", "pref_loss", "pref_beta", "pref_ftx", "simpo_gamma", "dpo_label_smoothing", "ref_model",
    "ref_model_adapters", "ref_model_quantization_bit", "learning_rate", "dataset", "model_name_or_path", "output_dir",
    "do_train", "report_to", "save_strategy", "gradient_accumulation_steps", "plot_loss", "save_steps", "ld_alpha",
    "pref_bco_weight", "quantization_bit", "adapter_name_or_path", "cutoff_len", "moe_aux_loss_coef",
)  # fmt: skip


class Clock:
    """Clock that is advanced by steps only."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def fake_run(rounds, costs):
    """Time contenders that take ``costs[name] * (batch + 1)`` seconds; return the timings and the order of steps."""
    clock, ran, settled = Clock(), [], []

    def step(name):
        def work(batch):
            ran.append((name, batch))
            clock.now += costs[name] * (batch + 1)
            return batch + costs[name]

        return work

    def settle(name):
        settled.append(name)
        clock.now += 100.0  # untimed

    timings = timed_rounds(
        {name: step(name) for name in costs}, rounds=rounds, warm_up=rounds - 1, clock=clock,
        synchronize=lambda: None, settle=settle, on_step=lambda name: None,
    )  # fmt: skip
    assert settled == [name for name, _ in ran]
    return timings, ran


def test_a_round_runs_every_contender_on_its_batch_and_the_order_rotates():
    timings, ran = fake_run(3, {"a": 1.0, "b": 2.0})
    assert ran == [("a", 2), ("b", 2), ("b", 0), ("a", 0), ("a", 1), ("b", 1), ("b", 2), ("a", 2)]
    assert timings.seconds == {"a": [1.0, 2.0, 3.0], "b": [2.0, 4.0, 6.0]}  # without the warm-up
    assert timings.losses == {"a": 1.0, "b": 2.0}  # on the first round's batch


def test_every_contender_begins_a_round_in_turn():
    assert [rotated(["a", "b", "c"], turn)[0] for turn in range(4)] == ["a", "b", "c", "a"]


def test_speeds_are_medians_and_ratios_are_within_rounds():
    # a slow machine in round 3 slows down both: the ratio of that round is not affected
    seconds = {"host_dpo": [2.0, 4.0, 40.0], "sepo": [1.0, 2.0, 20.0]}
    found = speeds(seconds, pairs=[2, 2, 2], tokens=[100, 200, 400], baselines=("host_dpo", "host_simpo"))
    assert found["sepo"].pairs_per_second == 1.0
    assert found["sepo"].tokens_per_second == 100.0
    assert found["sepo"].ratios == {"host_dpo": 2.0}  # a contender that did not run is not a baseline
    assert found["host_dpo"].ratios == {"host_dpo": 1.0}


def planned(recipe, names=None):
    recipe = measured_recipe({"model_name_or_path": "m", **recipe}, output_dir="/tmp/elsewhere")
    contenders = plan_contenders(recipe, host_keys=HOST_KEYS, names=names)
    return {contender.name: contender for contender in contenders}


def test_the_router_loss_is_measured_in_sepos_stages_only():
    """The host's DPO would compute it, and not add it."""
    contenders = planned({"stage": "minor_dpo", "moe_aux_loss_coef": 0.01})
    with_loss = {name for name, each in contenders.items() if "moe_aux_loss_coef" in each.host_recipe}
    assert with_loss == set(CONTENDERS) - {HOST_DPO, HOST_SIMPO}
    assert {contenders[name].settings.router_loss_weight for name in with_loss} == {0.01}


def test_every_contender_keeps_what_the_recipe_allows():
    contenders = planned({"stage": "minor_dpo", "kept_activations_mb": 7})
    assert not any("kept_activations_mb" in each.host_recipe for each in contenders.values())
    assert {each.settings.kept_bytes for each in contenders.values() if each.settings is not None} == {7_000_000}


@pytest.mark.parametrize(
    ("recipe", "own"),
    [
        ({"stage": "sepo", "oracle_model": "o", "oracle_base_model": "b"}, "sepo"),
        ({"stage": "sepo"}, "sepo"),  # no rows are scored, so no oracle is needed
        ({"stage": "sepo", "objective": "dpo"}, "dpo"),
        ({"stage": "minor_dpo", "token_scorer": "oracle"}, "recipe"),
        ({"stage": "treg", "treg_rewards": "oracle"}, "treg"),
        ({"stage": "treg", "objective": "wpo"}, "recipe"),
        ({"stage": "selective_dpo", "ref_model": "r", "select_ratio": 0.2}, "selective_dpo"),
        ({"stage": "sepo", "objective": "confpo"}, "recipe"),
        ({"stage": "sepo", "objective": "tgdpo", "tgdpo_alpha": 2.0}, "recipe"),
        ({"stage": "sepo", "objective": "ld_dpo", "ld_alpha": 0.3}, "recipe"),
        ({"stage": "sepo", "objective": "sampo"}, "recipe"),
        ({"stage": "sepo", "token_weight": "position"}, "recipe"),
        ({"stage": "minor_dpo", "objective": {"dpo": 0.8, "orpo": 0.2}}, "recipe"),
        ({"stage": "minor_dpo", "objective": "{sepo: 1, dpo: 0.5}", "select_ratio": 0.5}, "recipe"),
        ({"stage": "dpo"}, "host_dpo"),
        ({"stage": "dpo", "pref_loss": "simpo", "pref_beta": 2.5}, "host_simpo"),
        ({"stage": "dpo", "pref_loss": "orpo"}, "recipe"),
    ],
)
def test_every_recipe_gives_every_contender(recipe, own):
    assert own_name(recipe) == own
    contenders = planned(recipe)
    assert list(contenders) == [*CONTENDERS, *(["recipe"] if own == "recipe" else [])]
    for name, contender in contenders.items():
        assert contender.host_recipe["stage"] == "dpo"
        assert (contender.settings is None) == name.startswith("host_") or name == "recipe"
        if contender.settings is None:
            assert not {"select_ratio", "objective", "oracle_model"} & set(contender.host_recipe)


def test_the_recipes_own_settings_stay_and_ratios_are_shared():
    contenders = planned({"stage": "selective_dpo", "select_ratio": 0.2, "pref_beta": 0.05, "select_rule": "quantile"})
    selective, sepo = contenders["selective_dpo"].settings.method, contenders["sepo"].settings.method
    assert dict(selective.hyperparameters) == {
        "beta": 0.05, "chosen_ratio": 0.2, "rejected_ratio": 0.2, "rule": "quantile",
    }  # fmt: skip
    assert (sepo.selector.chosen_ratio, sepo.selector.rule) == (0.2, "floor")
    assert contenders["dpo"].settings.method.hyperparameters["beta"] == 0.1


@pytest.mark.parametrize(
    ("recipe", "dpo", "simpo"),
    [
        ({"stage": "sepo"}, {"beta": 0.1}, {"beta": 2.0, "gamma": 1.0}),
        ({"stage": "dpo", "pref_beta": 0.3, "dpo_label_smoothing": 0.2}, {"beta": 0.3, "label_smoothing": 0.2}, {}),
        ({"stage": "dpo", "pref_loss": "simpo"}, {"beta": 0.1}, {"beta": 0.1, "gamma": 0.5}),  # the host's defaults
        ({"stage": "sepo", "objective": "simpo", "pref_beta": 3}, {"beta": 0.1}, {"beta": 3.0, "gamma": 1.0}),
    ],
)
def test_host_losses_and_sepo_losses_get_the_same_settings(recipe, dpo, simpo):
    contenders = planned(recipe)
    for own, host, expected in (("dpo", HOST_DPO, dpo), ("simpo", HOST_SIMPO, simpo)):
        settings = contenders[own].settings.method.hyperparameters
        assert {name: settings[name] for name in expected} == expected
        theirs = contenders[host].host_recipe
        assert theirs["pref_beta"] == settings["beta"]
        assert theirs.get("simpo_gamma", 0) == settings.get("gamma", 0)
        assert theirs.get("dpo_label_smoothing", 0) == settings.get("label_smoothing", 0)


def test_a_reference_goes_to_those_that_have_one():
    contenders = planned({"stage": "dpo", "ref_model": "r"})
    having = {name for name, contender in contenders.items() if contender.host_recipe.get("ref_model") == "r"}
    assert having == {name for name, contender in contenders.items() if contender.needs_reference_model}
    assert having == {"host_dpo", "dpo", "selective_dpo", "minor_dpo", "treg"}


def test_what_a_run_writes_is_not_measured():
    recipe = {"stage": "dpo", "output_dir": "saves", "eval_steps": 2, "save_steps": 5, "report_to": "wandb",
              "gradient_accumulation_steps": 8, "plot_loss": True, "learning_rate": 1e-5}  # fmt: skip
    assert measured_recipe(recipe, output_dir="elsewhere") == {
        "stage": "dpo", "do_train": True, "output_dir": "elsewhere", "report_to": "none", "save_strategy": "no",
        "gradient_accumulation_steps": 1, "learning_rate": 1e-5,
    }  # fmt: skip


def refused(call, *words):
    with pytest.raises(SepoError) as error:
        call()
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_invalid_options_are_refused_in_one_line():
    from sepo.hosts.llamafactory.bench.rows import drawn_batches

    refused(lambda: planned({"stage": "sepo"}, ["spo"]), "--stages", "'spo'", "Did you mean 'sepo'", "host_dpo")
    refused(lambda: planned({"stage": "sepo"}, ["sepo", "sepo"]), "--stages", "different")
    refused(lambda: planned({"stage": "sft"}), "stage is sft", "stage=dpo")
    refused(lambda: planned({}), "sft (the default)")
    refused(lambda: planned({"stage": "seppo"}), "Did you mean 'sepo'")
    refused(lambda: planned({"stage": "sepo", "deepspeed": "z3.json"}), "deepspeed", "one process", "deepspeed=null")
    refused(lambda: drawn_batches([5] * 3, pairs=4, rounds=1, seed=0), "3 pairs", "a batch has 4")
    refused(lambda: check_keys({"stage": "sepo", "lerning_rate": 1}, host_keys=HOST_KEYS), "'learning_rate'")
    refused(lambda: check_keys({"stage": "dpo", "select_ratio": 1}, host_keys=HOST_KEYS), "key of sepo's stages")
    check_keys({"stage": "dpo", "select_ratio": None}, host_keys=HOST_KEYS)  # removed by an override


def test_batches_are_drawn_without_repetition_while_rows_last():
    from sepo.hosts.llamafactory.bench.rows import drawn_batches

    lengths = [9, 2, 4, 4, 7, 1, 3]
    batches = drawn_batches(lengths, pairs=2, rounds=5, seed=1)
    assert [len(set(batch)) for batch in batches] == [2] * 5
    assert len({row for batch in batches[:3] for row in batch}) == 6
    again, other = (drawn_batches(lengths, pairs=2, rounds=5, seed=seed) for seed in (1, 2))
    assert batches == again != other


def test_batches_have_short_and_long_rows_as_the_data_has():
    from sepo.hosts.llamafactory.bench.rows import drawn_batches

    lengths = random.Random(0).choices(range(1000), k=200)
    for seed in range(20):
        batches = drawn_batches(lengths, pairs=2, rounds=5, seed=seed)
        drawn = sorted(row for batch in batches for row in batch)
        assert len(set(drawn)) == 10
        parts = sorted(sorted(lengths).index(lengths[row]) // 20 for row in drawn)
        assert all(abs(part - place) <= 1 for place, part in enumerate(parts))  # rows of equal length may be swapped
    assert drawn_batches(lengths, pairs=2, rounds=5, seed=1) != drawn_batches(lengths, pairs=2, rounds=5, seed=2)


def test_losses_that_differ_are_reported():
    assert loss_notes({"host_dpo": 0.69, "dpo": 0.6901, "sepo": 5.0}) == []
    (note,) = loss_notes({"host_dpo": 0.69, "dpo": 0.75})
    assert note.startswith("CHECK: on the same batch, the loss of dpo")
    assert loss_notes({"host_dpo": 0.69, "dpo": float("nan")})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["/no/such.yaml"], ["recipe '/no/such.yaml' does not exist"]),
        (["{recipe}", "--stages", "host_dpo,unknown"], ["unknown 'unknown'"]),
        (["{recipe}", "--rounds", "0", "seed=1"], ["--rounds is 0"]),
        (["{recipe}", "model_name_or_path=/no/model"], ["/no/model"]),
        (["{recipe}", "-o", "/no/folder/out.json"], ["no directory /no/folder"]),
    ],
)
def test_the_command_refuses_in_one_line(words, expected, world, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    recipe = write(sepo_recipe(world, tmp_path / "out"), tmp_path / "recipe.yaml")
    assert main(["bench", *(word.format(recipe=recipe) for word in words)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sepo: error:")]
    assert all(word in line for word in expected)


def test_several_processes_are_refused(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe = write(host_recipe(world, tmp_path / "out"), tmp_path / "recipe.yaml")
    assert main(["bench", str(recipe)]) == 2
    assert "bench measures one process" in capsys.readouterr().err


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.host
def test_a_recipe_from_the_command_line(world, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "adapter_model.safetensors").write_text("an earlier run")
    recipe = sepo_recipe(
        world, output, val_size=0.25, eval_strategy="steps", eval_steps=2, plot_loss=True, save_steps=1,
        gradient_accumulation_steps=4, load_best_model_at_end=True, oracle_model="/no/oracle", oracle_base_model="/no",
    )  # fmt: skip
    before = digest(world)
    file = write(recipe, tmp_path / "recipe.yaml")
    words = ["bench", file, "--rounds", "2", "--no-memory", "-o", tmp_path / "bench.json", "select_ratio=0.5"]
    done = run([BIN / "sepo", *words], cwd=tmp_path, env=environment(COLUMNS="200"))
    assert digest(world) == before
    assert [path.name for path in output.iterdir()] == ["adapter_model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "out", "recipe.yaml"]
    result = json.loads((tmp_path / "bench.json").read_text())
    found = {entry["name"]: entry for entry in result["contenders"]}
    assert list(found) == list(CONTENDERS)
    for entry, cells in zip(result["contenders"], table_rows(result), strict=True):
        assert all(cell in done.stdout for cell in cells)
        assert len(entry["seconds"]) == 2
        assert entry["pairs_per_second"] > 0
        assert entry["ratio_to_host_simpo"] > 0
    assert found["host_dpo"]["first_batch_loss"] == pytest.approx(found["dpo"]["first_batch_loss"], abs=1e-4)
    assert found["host_simpo"]["first_batch_loss"] == pytest.approx(found["simpo"]["first_batch_loss"], abs=1e-4)
    assert abs(found["dpo"]["first_batch_loss"] - 0.6931) > 1e-3  # policy and reference differ: an informative loss
    assert found["sepo"]["settings"]["select"]["chosen_ratio"] == 0.5
    assert found["host_dpo"]["ratio_to_host_dpo"] == 1.0
    assert all(part["pairs"] == 2 and part["tokens"] > 40 for part in result["rounds"])
    assert result["recipe"]["output_dir"] == str(output)
    assert {"torch", "transformers", "llamafactory", "peft", "sepo"} <= set(result["versions"])
    assert {"processor", "cores", "threads", "flags", "gpu"} <= set(result["machine"])
    assert "tokens are selected by random scores, as many as with an oracle" in " ".join(done.stdout.split())
    assert "without the optimizer step" in " ".join(done.stdout.split())
    assert "bench:" in done.stderr  # the progress bar


@pytest.mark.host
@pytest.mark.parametrize(
    ("keys", "note"),
    [
        ({"objective": "critical_dpo"}, "tokens are weighed by random scores"),  # in [0, 1]
        ({"objective": {"tgdpo": 0.8, "d2po": 0.2}, "token_weight": "reward", "ref_precompute": True}, "are weighed"),
        ({"objective": "confpo"}, "without the optimizer step"),
    ],
    ids=["critical", "sum", "confpo"],
)
def test_a_weighted_method_is_measured(world, tmp_path, keys, note):
    recipe = sepo_recipe(world, tmp_path / "out", oracle_model=None, oracle_base_model=None, **keys)
    file = write(recipe, tmp_path / "recipe.yaml")
    words = ["bench", file, "--rounds", "1", "--no-memory", "-o", tmp_path / "bench.json", "--stages", "recipe,sepo"]
    done = run([BIN / "sepo", *words], cwd=tmp_path, env=environment(COLUMNS="200"))
    own, sepo = json.loads((tmp_path / "bench.json").read_text())["contenders"]
    assert (own["name"], sepo["name"]) == ("recipe", "sepo")
    assert own["pairs_per_second"] > 0
    assert 0 < own["first_batch_loss"] < 10
    assert note in " ".join(done.stdout.split())


@pytest.mark.host
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="resident memory is read from /proc")
def test_memory_is_measured_in_a_subprocess(world, tmp_path):
    """Full fine-tuning from a host's recipe: the reference is a second model that is loaded before the step."""
    from sepo.hosts.llamafactory.bench.memory import child_peak

    recipe = host_recipe(world, tmp_path / "out", finetuning_type="full", lora_rank=None, lora_target=None)
    measured = measured_recipe(recipe, output_dir=str(tmp_path / "elsewhere"))
    task = {"recipe": measured, "contender": "dpo", "rounds": 1, "seed": 0}
    peak, reason = child_peak(task, folder=tmp_path)
    assert not reason
    assert 2**16 < peak < 2**30
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="resident memory is read from /proc")
def test_memory_of_a_step_is_the_memory_that_it_touches():
    """In a subprocess, like the benchmark: memory of other threads would count, too."""
    code = (
        "import torch\n"
        "from sepo.hosts.llamafactory.bench.memory import resident_peak\n"
        "made = lambda batch: torch.ones(2**26 * (batch + 1), dtype=torch.uint8)\n"
        "print(resident_peak(made, lambda: None, batches=[0, 1], model=torch.nn.Linear(3, 3)))"
    )
    peak = int(run([sys.executable, "-c", code], cwd=ROOT).stdout)
    assert 2**27 <= peak + 2**22 < 1.1 * 2**27


def test_a_crashed_process_gives_a_reason_instead_of_a_number(tmp_path):
    from sepo.hosts.llamafactory.bench.memory import child_peak

    peak, reason = child_peak({}, folder=tmp_path)
    assert peak is None
    assert "ended with status 1" in reason


@pytest.mark.host
def test_the_gpu_benchmark_runs_in_small_on_a_cpu(tmp_path):
    script = ROOT / "benchmarks" / "gpu_step.py"
    small = f"--shape tiny --length 64 --rounds 1 --no-memory --cache {tmp_path} --output {tmp_path}/out.json"
    env = environment(CUDA_VISIBLE_DEVICES="")
    done = run([sys.executable, script, *small.split()], cwd=tmp_path, env=env)
    result = json.loads((tmp_path / "out.json").read_text())
    assert [entry["name"] for entry in result["contenders"]] == [
        "host_dpo", "host_simpo", "sepo", "dpo", "selective_dpo",
    ]  # fmt: skip
    assert result["rounds"] == [{"pairs": 2, "tokens": 4 * 64}]  # exactly the requested length
    assert result["peak_flops_per_second"] is None
    dpo = result["contenders"][0]
    parameters = 2 * (4 * 32 * 32 + 3 * 32 * 64) + 32 * 512
    assert dpo["model_flops_per_second"] == pytest.approx(6 * parameters * dpo["tokens_per_second"])
    assert "no GPU" in done.stdout


@pytest.mark.parametrize(
    ("script", "words", "expected"),
    [
        ("gpu_step.py", [], "no CUDA GPU is visible, and shape 7b is too large for a CPU"),
        ("train_step.py", ["--data-dir", "/no/data"], "--data-dir /no/data has no dataset_info.json"),
    ],
)
def test_the_benchmarks_name_what_is_missing(script, words, expected):
    env = {**os.environ, "PYTHONPATH": str(ROOT / "plugin"), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
