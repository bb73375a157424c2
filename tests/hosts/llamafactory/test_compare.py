"""`sepo compare`: resumption, failures and refusals with stand-ins for training and evaluation, and one real run."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from sepo.cli import main
from sepo.errors import SepoError
from sepo.evaluation.comparison import Measured
from sepo.hosts.llamafactory import compare as command
from sepo.hosts.llamafactory import compare_page, compared_runs
from sepo.hosts.llamafactory.compare import compare
from sepo.hosts.llamafactory.evaluate import check_evaluation
from sepo.hosts.llamafactory.evaluate_recipe import SAMPLING, evaluation_recipe
from sepo.hosts.llamafactory.pipeline import read_pipeline, run_pipeline
from sepo.hosts.llamafactory.plan.run import plan
from sepo.hosts.llamafactory.recipe import check_recipe
from tests.support.recipes import BIN, environment, run, sepo_recipe, write
from tests.support.tiny import save_pairs


@pytest.fixture
def data(world, tmp_path):
    """Return a recipe for the tiny models whose training, validation and held-out rows are data sets of their own."""
    save_pairs(tmp_path / "data")
    info = json.loads((tmp_path / "data" / "dataset_info.json").read_text())
    entry = info["tiny_pairs"]
    rows = json.loads((tmp_path / "data" / entry["file_name"]).read_text())
    for name, part in (("train", rows[:12]), ("val", rows[12:18]), ("held", rows[18:])):
        (tmp_path / "data" / f"{name}.json").write_text(json.dumps(part))
        info[name] = {**entry, "file_name": f"{name}.json"}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    shared = sepo_recipe(world, tmp_path / "out", dataset_dir=str(tmp_path / "data"), dataset="train", seed=None)
    return {**shared, "eval_dataset": "held", "seeds": [1, 2], "variants": {"dpo": {"objective": "dpo"}, "sepo": {}}}


class Stub:
    """Stand-ins for training and evaluation: trained runs leave a weight file, and each row's value is given."""

    def __init__(self, monkeypatch):
        self.trained, self.evaluated, self.fail, self.kill, self.values = [], [], {}, None, {}
        self.found, self.references = {}, []
        monkeypatch.setattr(compared_runs, "train", self._train)
        monkeypatch.setattr(command, "evaluate_recipe", self._evaluate)
        monkeypatch.setattr(command, "check_evaluation", lambda recipe, request: 2)
        monkeypatch.setattr(command, "row_measures", lambda result, answers: result)
        monkeypatch.setattr(command, "rows_digest", lambda heldout: "rows")

    def _train(self, recipe, file, *, environment, log, on_start):
        output = compared_runs.Path(recipe["output_dir"])
        self.found[output.name] = sorted(p.name for p in output.iterdir()) if output.exists() else None
        on_start(os.getpid())
        (output / "checkpoint-2").mkdir(parents=True, exist_ok=True)
        (output / "checkpoint-2" / "trainer_state.json").write_text("{}")
        (output / "adapter_config.json").write_text("{}")
        (output / "trainer_state.json").write_text(
            '{"log_history": [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}]}'
        )
        if self.kill == output.name:
            raise KeyboardInterrupt
        log.write(self.fail.get(output.name, b"fine\n"))
        log.flush()
        self.trained.append(output.name)
        return 1 if output.name in self.fail else 0

    def _evaluate(self, recipe, *, request):
        self.evaluated.append((request.name, recipe.dataset))
        self.references.append(recipe.reference)
        if request.name in self.fail:
            raise RuntimeError("no\nroom")
        request.output.mkdir(parents=True)
        value = self.values.get((request.name, recipe.dataset), 0.5)
        rows = {"accuracy_summed": [value, value], "accuracy": [value, value]}
        return SimpleNamespace(policies={"after": SimpleNamespace(result=rows)}, heldout=None)


@pytest.fixture
def stub(monkeypatch):
    return Stub(monkeypatch)


def result(recipe):
    return json.loads((command.Path(recipe["output_dir"]) / command.RESULT).read_text())


def called(recipe, **more):
    return compare({**recipe, **more}, environment=os.environ)


def test_finished_runs_and_evaluations_are_not_repeated_and_seeds_can_be_added(data, stub, tmp_path):
    assert called(data) == 0
    names = ["dpo-1", "dpo-2", "sepo-1", "sepo-2"]
    assert stub.trained == names
    assert stub.evaluated == [(name, "held") for name in names]
    first = result(data)
    assert list(first["variants"]) == ["dpo", "sepo"]
    assert first["variants"]["sepo"]["difference"]["accuracy"]["value"] == 0.0
    assert first["variants"]["dpo"]["difference"] is None
    page = (tmp_path / "out" / compare_page.PAGE).read_text()
    assert "dpo-1" in page
    assert "sepo-1" in page
    assert "<svg" in page
    assert page.index("Comparison of dpo, sepo") < page.index("dpo-1")
    assert "Loss by step" in page
    assert called(data) == 0
    assert called(data, seeds=[1, 2, 3]) == 0
    assert stub.trained == [*names, "dpo-3", "sepo-3"]
    assert stub.evaluated[4:] == [("dpo-3", "held"), ("sepo-3", "held")]


def test_an_interrupted_run_resumes_from_its_complete_checkpoint(data, stub, tmp_path, monkeypatch):
    stub.kill = "sepo-1"
    with pytest.raises(KeyboardInterrupt):
        called(data)
    partial = tmp_path / "out" / "runs" / "sepo-1" / "checkpoint-4"
    partial.mkdir()
    (partial / "trainer_state.json").write_text('{"cut')
    stub.kill = None
    mine = {"process": os.getpid(), "created": psutil.Process().create_time()}
    process = tmp_path / "out" / "records" / "sepo-1.process.json"
    assert not process.exists()
    process.write_text(json.dumps(mine))  # as if only the parent was killed
    with pytest.raises(SepoError, match=f"run 'sepo-1' is still being trained by process {os.getpid()}"):
        called(data)
    process.write_text(json.dumps({**mine, "created": 0}))  # the id is that of another process now
    assert called(data) == 0
    assert stub.trained == ["dpo-1", "dpo-2", "sepo-1", "sepo-2"]
    assert stub.found["sepo-1"] == ["adapter_config.json", "checkpoint-2", "trainer_state.json"]
    times = json.loads((tmp_path / "out" / command.TIMES).read_text())
    assert {name: each["resumed"] for name, each in times.items()} == {
        "dpo-1": False, "dpo-2": False, "sepo-1": True, "sepo-2": False,
    }  # fmt: skip


def test_a_run_without_a_checkpoint_starts_anew(data, stub, tmp_path):
    stub.kill = "dpo-1"
    with pytest.raises(KeyboardInterrupt):
        called(data)
    (tmp_path / "out" / "runs" / "dpo-1" / "checkpoint-2" / "trainer_state.json").unlink()
    stub.kill = None
    assert called(data) == 0
    assert stub.found["dpo-1"] is None  # the host would refuse the weights of the first attempt


def test_a_failed_run_is_reported_with_its_error_and_the_others_finish(data, stub, capsys):
    stub.fail = {"dpo-2": b"step 1\rTraceback ...\nValueError: no such layer\n  0%|   | 0/4\n"}
    stub.values = {("dpo-1", "held"): 0.25, ("sepo-1", "held"): 0.75, ("sepo-2", "held"): 0.75}
    assert called(data) == 1
    found = result(data)["variants"]
    assert found["dpo"]["failed"] == {"dpo-2": "ValueError: no such layer"}
    assert list(found["dpo"]["seeds"]) == ["1"]
    assert found["sepo"]["difference"]["accuracy"]["value"] == 0.5
    assert "failed: dpo-2: ValueError: no such layer" in capsys.readouterr().out
    page = (command.Path(data["output_dir"]) / compare_page.PAGE).read_text()
    assert "dpo-2: ValueError: no such layer" in page
    assert "+50.0 points [+50.0, +50.0]" in page
    assert "the interval excludes 0</span>" in page
    stub.fail = {}
    assert called(data) == 0  # only this run is made
    assert stub.trained[4:] == ["dpo-2"]
    assert result(data)["variants"]["dpo"]["failed"] == {}


def test_a_variant_whose_first_seed_failed_is_on_the_page_with_the_other(data, stub):
    stub.fail = {"sepo-1": b"ValueError: no\n"}
    assert called(data) == 1
    page = (command.Path(data["output_dir"]) / compare_page.PAGE).read_text()
    assert [f">{name}</bdi>" in page for name in ("dpo-1", "dpo-2", "sepo-1", "sepo-2")] == [True, False, False, True]


def test_a_failed_evaluation_is_reported_and_the_others_finish(data, stub, tmp_path):
    stub.fail = {"sepo-2": b""}
    assert called(data) == 1
    stub.fail, stub.trained = {}, []
    (tmp_path / "out" / "evaluations" / "heldout" / "dpo-1" / "rows.json").unlink()  # as if it was interrupted
    assert called(data) == 0
    assert stub.trained == ["sepo-2"]
    stub.fail = {"dpo-1": b""}
    (tmp_path / "out" / "evaluations" / "heldout" / "dpo-1" / "rows.json").unlink()
    assert called(data) == 1
    assert result(data)["variants"]["dpo"]["failed"] == {"dpo-1": "RuntimeError: no"}


def test_evaluations_without_a_reference_are_not_those_with_one(data, stub):
    assert called(data, reference_measures=False) == 0
    assert stub.references == [None] * 4
    with pytest.raises(SepoError, match=r"run 'dpo-1' was evaluated with other settings \(.*reference_measures"):
        called(data)
    assert called(data, output_dir=data["output_dir"] + "2") == 0
    assert all(reference.model == data["model_name_or_path"] for reference in stub.references[4:])


def test_the_choice_reads_validation_rows_only(data, stub):
    grid = {"learning_rate": [1e-3, 1e-2]}
    names = [f"{name}-learning_rate={rate}-{seed}" for name in ("dpo", "sepo") for rate in grid["learning_rate"]
             for seed in (1, 2)]  # fmt: skip
    stub.values = {(name, "val"): 0.2 for name in names} | {(name, "held"): 0.9 for name in names}
    stub.values |= {("sepo-learning_rate=0.01-1", "val"): 0.1, ("sepo-learning_rate=0.01-2", "val"): 0.4}
    stub.values[("sepo-learning_rate=0.01-1", "held")] = 0.1
    assert called(data, grid=grid, choose="learning_rate", validation_dataset="val") == 0
    found = result(data)["variants"]
    assert (found["dpo"]["run"], found["sepo"]["run"]) == ("dpo-learning_rate=0.001", "sepo-learning_rate=0.01")
    assert found["sepo"]["validation"]["sepo-learning_rate=0.01"] == {"1": 0.1, "2": 0.4}
    assert found["sepo"]["keys"] == {"learning_rate": 0.01}
    held = [name for name, rows in stub.evaluated if rows == "held"]
    assert held == [f"{found[name]['run']}-{seed}" for name in ("dpo", "sepo") for seed in (1, 2)]


def test_a_file_that_changed_after_runs_were_made_is_refused(data, stub, tmp_path):
    assert called(data) == 0
    with pytest.raises(SepoError, match=r"run 'dpo-1' in .* \(lora_rank: lora_rank was 4, now 8\)"):
        called(data, lora_rank=8)
    with pytest.raises(SepoError, match=r"run 'sepo-1' .*sepo_gamma was None, now 2"):
        called(data, variants={"dpo": {"objective": "dpo"}, "sepo": {"sepo_gamma": 2}})
    with pytest.raises(
        SepoError, match=r"run 'dpo-1' was evaluated with other settings \(generate: generate was 0, now"
    ):
        called(data, generate=3)
    (tmp_path / "out" / "runs" / "mine-1").mkdir()
    (tmp_path / "out" / "runs" / "mine-1" / "notes.txt").write_text("mine")
    with pytest.raises(SepoError, match="mine-1 exists and was not made by this comparison"):
        called(data, variants={"mine": {}})
    assert (tmp_path / "out" / "runs" / "mine-1" / "notes.txt").read_text() == "mine"
    assert len(stub.trained) == 4


def test_records_have_no_tokens_and_a_rotated_token_changes_nothing(data, stub, tmp_path):
    token, rotated = "hf_" + "a" * 30, "hf_" + "b" * 30
    assert called(data, hf_hub_token=token) == 0
    assert called(data, hf_hub_token=rotated) == 0
    assert len(stub.trained) == 4
    for file in (tmp_path / "out").rglob("*.*"):
        assert not file.is_file() or token not in file.read_text(), file


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"variants": {"a": {"select_ratio": 3}}}, "variant 'a': select_ratio is 3.0, expected a share"),
        ({"variants": {"a": {"lerning_rate": 3}}}, "variant 'a': unknown key 'lerning_rate'. Did you mean 'learning"),
        ({"variants": {"a": {"stage": "dpo", "lerning_rate": 3}}}, "variant 'a': unknown key 'lerning_rate'"),
        ({"variants": {"a": {"stage": "dpo", "select_ratio": 0.3}}}, "variant 'a': select_ratio is set, but stage dpo"),
        ({"variants": {"a": {"oracle_model": "nowhere/at/all"}}}, "variant 'a': .*nowhere/at/all"),
        ({"eval_dataset": "hold"}, "variant 'dpo': .*hold"),
        ({"model_name_or_path": None}, "variant 'dpo': model_name_or_path is missing"),
        ({"generate": 2, "judge": "maths", "expected_column": "a"}, "maths"),
        ({"generate": 2, "judge": "exact"}, "judge is exact, but expected_column is missing"),
    ],
)
def test_invalid_variants_are_refused_before_anything_runs(data, stub, tmp_path, keys, message):
    with pytest.raises(SepoError, match=message):
        called(data, **keys)
    assert stub.trained == []
    assert not (tmp_path / "out").exists()


def test_rows_and_expected_answers_are_read_before_anything_is_trained(data, stub, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "check_evaluation", check_evaluation)
    judged = {**data, "generate": 2, "judge": "exact"}
    with pytest.raises(SepoError, match=r"dataset 'held.json' has the columns .*, expected answr"):
        called(judged, expected_column="answr")
    with pytest.raises(SepoError, match="answers may have 5000 more, but the model has 2048 positions"):
        called(data, generate=2, max_new_tokens=5000)
    assert stub.trained == []
    rows = json.loads((tmp_path / "data" / "val.json").read_text())
    (tmp_path / "data" / "val.json").write_text(json.dumps([{**rows[0], "chosen": None}]))
    with pytest.raises(SepoError, match="val"):
        called(data, grid={"learning_rate": [1e-3, 1e-2]}, choose="learning_rate", validation_dataset="val")
    assert stub.trained == []


def test_checkpoints_without_the_state_of_the_optimizer_are_not_resumed(data, stub):
    stub.kill = "dpo-1"
    with pytest.raises(KeyboardInterrupt):
        called(data, save_only_model=True)
    stub.kill = None
    assert called(data, save_only_model=True) == 0
    assert stub.found["dpo-1"] is None


@pytest.mark.parametrize("name", ["plan", "eval", "sample", "train", "pipeline"])
def test_other_commands_refuse_the_file_in_one_line(name, data, tmp_path):
    path = write({**data, "oracle": {}}, tmp_path / "compare.yaml")
    read = {
        "plan": lambda: plan(path),
        "eval": lambda: evaluation_recipe(path),
        "sample": lambda: evaluation_recipe(path, use=SAMPLING),
        "train": lambda: check_recipe(data),
        "pipeline": lambda: run_pipeline(read_pipeline(path)),
    }
    with pytest.raises(SepoError, match="section 'variants' is one of sepo compare; run sepo compare with this file"):
        read[name]()


def test_a_dry_run_prints_runs_memory_what_is_shared_and_the_time_left(data, stub, tmp_path, capsys):
    variants = {
        "dpo": {"stage": "dpo"},
        "a": {},
        "b": {"select_ratio": 0.5},
        "c": {"stage": "minor_dpo", "oracle_model": None, "ref_precompute": True},
    }
    path = write({**data, "variants": variants}, tmp_path / "compare.yaml")
    assert main(["compare", str(path), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "8 runs: 4 variants, 2 seeds" in shown
    assert "MiB" in next(line for line in shown.splitlines() if " a-1 " in line)
    assert "for 2 of 4 variants" in next(line for line in shown.splitlines() if "token scores by" in line)
    assert "for 1 of 4 variants" in next(line for line in shown.splitlines() if "precomputed" in line)
    assert "time: unknown until one run is finished" in shown
    assert stub.trained == []
    assert not (tmp_path / "out").exists()
    assert called({**data, "variants": {"a": {}}}) == 0
    for seed in (1, 2):
        (tmp_path / "out" / "records" / f"a-{seed}.times.json").write_text('{"seconds": 60.0, "resumed": false}')
    assert main(["compare", str(path), "--dry-run"]) == 0
    assert "time: 0:06:00 for 6 runs" in capsys.readouterr().out


@pytest.fixture
def trains_oracle(data):
    """Return the recipe with sections that train the oracle, one variant without and two with it."""
    sections = {"base": {"lora_rank": 2}, "oracle": {"lora_rank": 2}, "oracle_sample_ratio": 0.5}
    variants = {"dpo": {"objective": "dpo"}, "sepo": {}, "half": {"select_ratio": 0.5}}
    named = ("oracle_model", "oracle_base_model")
    return {name: value for name, value in data.items() if name not in named} | {**sections, "variants": variants}


USING = ["sepo-1", "sepo-2", "half-1", "half-2"]


def test_an_oracle_is_trained_once_before_the_first_run_that_uses_it(trains_oracle, stub, tmp_path):
    out, token, rotated = tmp_path / "out", "hf_" + "a" * 30, "hf_" + "b" * 30
    assert called(trains_oracle, hf_hub_token=token) == 0
    assert stub.trained == ["dpo-1", "dpo-2", "base", "oracle", *USING]
    assert len(json.loads((out / "sample" / "oracle_pairs.json").read_text())) == 6  # half of the 12 training rows
    recipe = json.loads((out / "records" / "half-2.done.json").read_text())
    assert recipe["oracle_model_adapters"] == f"{out / 'base'},{out / 'oracle'}"
    assert (recipe["oracle_base_model"], recipe["oracle_base_model_adapters"]) == (
        trains_oracle["model_name_or_path"], str(out / "base"),
    )  # fmt: skip
    assert recipe["model_name_or_path"] == trains_oracle["model_name_or_path"]  # the policy starts from no step
    assert "adapter_name_or_path" not in recipe
    without = json.loads((out / "records" / "dpo-2.done.json").read_text())
    assert not [name for name in without if name.startswith("oracle")]
    oracle = json.loads((out / "pipeline" / "oracle.done.json").read_text())
    assert (oracle["seed"], oracle["lora_rank"], oracle["adapter_name_or_path"]) == (1, 2, str(out / "base"))
    assert "eval_dataset" not in oracle
    first = (out / command.RESULT).read_bytes()
    assert called(trains_oracle, hf_hub_token=rotated) == 0
    assert (out / command.RESULT).read_bytes() == first
    assert called(trains_oracle, hf_hub_token=token, seeds=[1, 2, 3]) == 0
    assert stub.trained[8:] == ["dpo-3", "sepo-3", "half-3"]
    for file in out.rglob("*.*"):
        assert not file.is_file() or token not in file.read_text(), file


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"oracle": {"lora_rank": 8}}, r"step 'oracle' in .* \(lora_rank: lora_rank was 2, now 8\)"),
        ({"oracle_sample_ratio": 1.0}, r"step 'sample' in .*oracle_sample_ratio was 0.5, now 1.0"),
        ({"seeds": [2, 1]}, r"step 'sample' in .*seed was 1, now 2"),
    ],
)
def test_a_section_that_changed_after_its_oracle_was_trained_is_refused(trains_oracle, stub, changed, message):
    assert called(trains_oracle) == 0
    with pytest.raises(SepoError, match=message):
        called(trains_oracle, **changed)
    assert len(stub.trained) == 8


def test_an_interrupted_step_resumes_and_finished_ones_are_kept(trains_oracle, stub, tmp_path):
    stub.kill = "oracle"
    with pytest.raises(KeyboardInterrupt):
        called(trains_oracle)
    stub.kill = None
    sample = tmp_path / "out" / "sample" / "oracle_pairs.json"
    written = sample.stat().st_mtime_ns
    process = tmp_path / "out" / "pipeline" / "oracle.process.json"
    process.write_text(json.dumps({"process": os.getpid(), "created": psutil.Process().create_time()}))
    with pytest.raises(SepoError, match=f"run 'oracle' is still being trained by process {os.getpid()}"):
        called(trains_oracle)
    process.unlink()
    with pytest.raises(SepoError, match=r"run 'oracle' in .*lora_rank was 2, now 8.* remove .*/pipeline/oracle\.\*"):
        called(trains_oracle, oracle={"lora_rank": 8})
    assert called(trains_oracle) == 0
    assert stub.trained == ["dpo-1", "dpo-2", "base", "oracle", *USING]
    assert stub.found["oracle"] == ["adapter_config.json", "checkpoint-2", "trainer_state.json"]
    assert sample.stat().st_mtime_ns == written


def test_a_failed_oracle_fails_the_variants_that_need_it(trains_oracle, stub, tmp_path, capsys):
    stub.fail = {"oracle": b"Traceback ...\nValueError: no such layer\n"}
    assert called(trains_oracle) == 1
    assert stub.trained == ["dpo-1", "dpo-2", "base", "oracle"]  # once, not for each run
    found = result(trains_oracle)["variants"]
    error = "step 'oracle' of the oracle failed: ValueError: no such layer"
    assert found["sepo"]["failed"] == {"sepo-1": error, "sepo-2": error}
    assert found["half"]["failed"] == {"half-1": error, "half-2": error}
    assert list(found["dpo"]["seeds"]) == ["1", "2"]
    assert found["dpo"]["failed"] == {}
    assert "[oracle 3/3] oracle: failed: ValueError: no such layer" in capsys.readouterr().out
    stub.fail = {}
    assert called(trains_oracle) == 0
    assert stub.trained[4:] == ["oracle", *USING]
    failed = json.loads((tmp_path / "out" / command.RESULT).read_text())
    assert all(not each["failed"] for each in failed["variants"].values())


def test_a_reversed_oracle_is_a_step_of_its_own(trains_oracle, stub, tmp_path, capsys):
    recipe, out = {**trains_oracle, "oracle": {"kind": "reversed", "lora_rank": 2}}, tmp_path / "out"
    path = write(recipe, tmp_path / "compare.yaml")
    assert main(["compare", str(path), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "4 steps for the oracle" in shown
    assert "MiB" in next(line for line in shown.splitlines() if line.split()[:1] == ["oracle_reversed"])
    stub.fail = {"oracle_reversed": b"ValueError: no such layer\n"}
    assert called(recipe) == 1
    assert stub.trained == ["dpo-1", "dpo-2", "base", "oracle", "oracle_reversed"]
    error = "step 'oracle_reversed' of the oracle failed: ValueError: no such layer"
    assert result(recipe)["variants"]["sepo"]["failed"] == {"sepo-1": error, "sepo-2": error}
    stub.fail, stub.kill = {}, "oracle_reversed"
    with pytest.raises(KeyboardInterrupt):
        called(recipe)
    stub.kill = None
    info = out / "sample" / "dataset_info.json"
    declared = json.loads(info.read_text())
    info.write_text(json.dumps({name: declared[name] for name in ("oracle_pairs", "oracle_answers")}))
    assert called(recipe) == 0
    assert stub.trained[5:] == ["oracle_reversed", *USING]
    assert json.loads(info.read_text()) == declared
    assert "checkpoint-2" in stub.found["oracle_reversed"]
    run_ = json.loads((out / "records" / "half-2.done.json").read_text())
    assert run_["oracle_model_adapters"] == f"{out / 'base'},{out / 'oracle'}"
    assert run_["oracle_base_model_adapters"] == f"{out / 'base'},{out / 'oracle_reversed'}"
    assert "oracle_reversed" in json.loads((out / command.TIMES).read_text())
    records = [
        json.loads((out / "pipeline" / f"{name}.done.json").read_text()) for name in ("oracle", "oracle_reversed")
    ]
    assert records[0]["seed"] == records[1]["seed"] == 1
    assert records[0]["adapter_name_or_path"] == records[1]["adapter_name_or_path"] == str(out / "base")


def test_a_reversed_oracle_without_its_sample_fails_the_variants_that_need_it(trains_oracle, stub, tmp_path):
    recipe = {**trains_oracle, "oracle": {"kind": "reversed"}}
    stub.fail = {"oracle_reversed": b"ValueError: no\n"}
    assert called(recipe) == 1
    (tmp_path / "out" / "sample" / "dataset_info.json").unlink()
    stub.fail, stub.trained = {}, []
    assert called(recipe) == 1
    assert stub.trained == []
    assert "does not declare the data set 'oracle_pairs'" in result(recipe)["variants"]["half"]["failed"]["half-1"]


def test_a_sample_that_cannot_be_drawn_fails_the_oracle(trains_oracle, stub, tmp_path):
    (tmp_path / "out" / "sample").mkdir(parents=True)
    (tmp_path / "out" / "sample" / "dataset_info.json").write_text('{"mine": {}}')
    assert called(trains_oracle) == 1
    assert stub.trained == ["dpo-1", "dpo-2"]
    assert "lists other data sets (mine)" in result(trains_oracle)["variants"]["sepo"]["failed"]["sepo-1"]


def test_a_directory_of_a_step_that_a_comparison_did_not_make_is_refused(trains_oracle, stub, tmp_path):
    (tmp_path / "out" / "base").mkdir(parents=True)
    (tmp_path / "out" / "base" / "notes.txt").write_text("mine")
    with pytest.raises(SepoError, match="out/base exists and was not made by this comparison"):
        called(trains_oracle)
    assert stub.trained == []


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"oracle": {"lerning_rate": 3}}, "step 'oracle': unknown key 'lerning_rate'. Did you mean 'learning"),
        ({"base": {"lerning_rate": 3}}, "step 'base': unknown key 'lerning_rate'"),
        ({"base": {"model_name_or_path": "nowhere/at/all"}}, "nowhere/at/all"),
        ({"model_name_or_path": None}, "step 'base' has no model_name_or_path; set it on top or in its section"),
        ({"oracle": "dpo"}, "section 'oracle' is 'dpo'; keys and values are expected"),
        (
            {"oracle": {"kind": "revers"}},
            "oracle.kind is 'revers', expected one of dpo, ipo, minor_dpo, reversed, sft_contrast",
        ),
        ({"base": {"kind": "reversed"}}, "step 'base': unknown key 'kind'"),
        ({"oracle_sample_ratio": 2}, "oracle_sample_ratio is 2"),
        ({"oracle_base_model": "m"}, "the file sets oracle_base_model, and section 'base' trains an oracle"),
        ({"variants": {"a": {"objective": "dpo"}}}, "section 'base' trains an oracle, but no variant uses one"),
        ({"base_dataset": "held"}, "step 'base': dataset and eval_dataset both name held"),
        ({"oracle": {"dataset": "val", "dataset_dir": "data"}, "validation_dataset": "val"}, "step 'oracle': dataset"),
        ({"dataset": None, "variants": {"a": {"dataset": "train"}}}, "dataset is missing; set it on top"),
        ({"dataset": "trian", "variants": {"a": {"dataset": "train"}}}, "trian"),
    ],
)
def test_invalid_sections_are_refused_before_anything_runs(trains_oracle, stub, tmp_path, keys, message):
    if "dataset_dir" in (keys.get("oracle") or ()) and isinstance(keys["oracle"], dict):
        keys = {**keys, "oracle": {**keys["oracle"], "dataset_dir": trains_oracle["dataset_dir"]}}
    with pytest.raises(SepoError, match=message):
        called(trains_oracle, **keys)
    assert stub.trained == []
    assert not (tmp_path / "out").exists()


def test_a_dry_run_lists_the_steps_of_the_oracle_first(trains_oracle, stub, tmp_path, capsys):
    path = write(trains_oracle, tmp_path / "compare.yaml")
    assert main(["compare", str(path), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    places = [shown.index(text) for text in ("3 steps for the oracle", "sample", "base ", "oracle ", "dpo-1", "sepo-1")]
    assert places == sorted(places)
    assert "for 2 of 3 variants" in next(line for line in shown.splitlines() if "token scores by" in line)
    for name in ("oracle", "sepo-1"):
        assert "MiB" in next(line for line in shown.splitlines() if line.split()[:1] == [name])
    assert not (tmp_path / "out").exists()
    assert main(["compare", str(path), "--dry-run", "finetuning_type=full"]) == 0  # the steps make whole models
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["sepo-1", "to", "be", "run", "-"] in rows  # and these are not there yet
    stub.kill = "oracle"
    with pytest.raises(KeyboardInterrupt):
        called(trains_oracle)
    assert main(["compare", str(path), "--dry-run"]) == 0
    words = [line.split() for line in capsys.readouterr().out.splitlines()]
    states = [line for line in words if "finished" in line or "resumed" in line]
    assert [(line[0], line[1]) for line in states if line[0] != "time:"] == [
        ("sample", "finished"), ("base", "finished"), ("oracle", "to"), ("dpo-1", "finished"), ("dpo-2", "finished"),
    ]  # fmt: skip


def without_interruption(folder):
    return (folder / command.RESULT).read_bytes()


def kill_when(reached, words, folder):
    """Start a command, and kill it with its children as soon as ``reached()`` is true."""
    with open(folder / "killed.log", "w") as log:
        process = subprocess.Popen(words, cwd=folder, env=environment(), stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None, (folder / "killed.log").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.host
def test_a_killed_comparison_resumes_to_the_same_bytes(data, tmp_path):
    recipe = {**data, "variants": {"dpo": {"stage": "dpo", "pref_beta": 0.1}, "sepo": {}}, "save_steps": 2,
              "generate": 2, "max_new_tokens": 4}  # fmt: skip
    path = write(recipe, tmp_path / "compare.yaml")
    words = [sys.executable, "-m", "sepo", "compare", str(path), f"output_dir={tmp_path / 'killed'}"]
    kill_when((tmp_path / "killed" / "runs" / "dpo-2" / "checkpoint-2" / "trainer_state.json").exists, words, tmp_path)
    again = run([BIN / "sepo", *words[3:]], cwd=tmp_path, forks=True)
    assert "[1/4] dpo-1: finished before" in again.stdout
    assert "[2/4] dpo-2: done" in again.stdout
    assert json.loads((tmp_path / "killed" / command.TIMES).read_text())["dpo-2"]["resumed"]
    run([BIN / "sepo", "compare", path], cwd=tmp_path, forks=True)
    assert without_interruption(tmp_path / "out") == without_interruption(tmp_path / "killed")
    values = result({"output_dir": tmp_path / "out"})
    assert [list(each["seeds"]) for each in values["variants"].values()] == [["1", "2"], ["1", "2"]]
    means = values["variants"]["sepo"]["mean"]
    assert means["kl_chosen"]["value"] > 0
    assert means["tokens"]["value"] <= 4
    assert means["accuracy"]["low"] <= means["accuracy"]["value"] <= means["accuracy"]["high"]
    assert values["variants"]["sepo"]["difference"]["margin"]["value"] != 0
    page = (tmp_path / "out" / compare_page.PAGE).read_text()
    assert all(
        f'<title id="{key}-title">' in page
        for metric in ("rewards-accuracies", "rewards-margins", "loss")
        for key in (f"comparison-{metric}-step", f"comparison-{metric}-seconds")
    )
    assert '<title id="comparison-accuracy-by-selected-title">' in page  # dpo trains on all tokens
    # The measured rows are those of sepo eval.
    kept = json.loads((tmp_path / "out" / "evaluations" / "heldout" / "sepo-1" / "eval.json").read_text())
    rows = json.loads((tmp_path / "out" / "evaluations" / "heldout" / "sepo-1" / "rows.json").read_text())
    measured = Measured(rows["rows"], rows["digest"])
    assert command.run_means(measured)["margin"] == kept["policies"]["after"]["preference"]["reward"]["margin"]["value"]
    assert len(rows["rows"]["margin"]) == values["data"]["pairs"] == kept["data"]["pairs"]


@pytest.mark.host
def test_an_oracle_that_was_interrupted_is_that_of_the_pipeline(trains_oracle, tmp_path):
    variants = {"sepo": {}, "half": {"select_ratio": 0.5}}
    recipe = {**trains_oracle, "variants": variants, "seeds": [1], "save_steps": 2}
    path = write(recipe, tmp_path / "compare.yaml")
    words = [sys.executable, "-m", "sepo", "compare", str(path), f"output_dir={tmp_path / 'killed'}"]
    kill_when((tmp_path / "killed" / "oracle" / "checkpoint-2" / "trainer_state.json").exists, words, tmp_path)
    again = run([BIN / "sepo", *words[3:]], cwd=tmp_path, forks=True)
    assert "[oracle 2/3] base: finished before" in again.stdout
    assert again.stdout.count("[oracle 3/3] oracle: done") == 1
    times = json.loads((tmp_path / "killed" / command.TIMES).read_text())
    assert {name: times[name]["resumed"] for name in ("base", "oracle")} == {"base": False, "oracle": True}
    run([BIN / "sepo", "compare", path], cwd=tmp_path, forks=True)
    assert without_interruption(tmp_path / "out") == without_interruption(tmp_path / "killed")
    assert all(each["seeds"] for each in result({"output_dir": tmp_path / "out"})["variants"].values())
    shared = {name: value for name, value in recipe.items() if name not in ("variants", "seeds", "eval_dataset")}
    chain = write({**shared, "seed": 1, "output_dir": str(tmp_path / "chain")}, tmp_path / "pipeline.yaml")
    run([BIN / "sepo", "pipeline", chain], cwd=tmp_path, forks=True)
    for file in ("sample/oracle_pairs.json", "base/adapter_model.safetensors", "oracle/adapter_model.safetensors"):
        expected = (tmp_path / "chain" / file).read_bytes()
        assert (tmp_path / "out" / file).read_bytes() == expected, file
        assert (tmp_path / "killed" / file).read_bytes() == expected, file
    # With the pipeline's seed, the variant is the pipeline's policy.
    policies = [tmp_path / folder / "adapter_model.safetensors" for folder in ("chain/policy", "out/runs/sepo-1")]
    assert policies[0].read_bytes() == policies[1].read_bytes()
