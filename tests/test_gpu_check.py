"""The checks for a GPU: they run in small on a CPU, record every kind of failure, and detect wrong results."""

import functools
import json
import math
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.recipes import environment
from tests.support.recipes import run as run_command

BENCHMARKS, PLUGIN = (Path(__file__).parents[1] / name for name in ("benchmarks", "plugin"))
STATUSES = {"passed", "failed", "error", "timeout", "skipped"}


@pytest.fixture
def gpu_checks(monkeypatch):
    """Return the packages of the checks by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_check
    from gpu_checks import correctness, pair_attention, runner, sessions

    return SimpleNamespace(
        command=gpu_check, correctness=correctness, pairs=pair_attention, runner=runner, sessions=sessions
    )


@pytest.fixture
def small():
    """Return what the correctness checks read of their context, for a CPU."""
    return SimpleNamespace(tiny=True, cuda=False, device="cpu")


class Fake:
    """The context of checks that compute nothing."""

    machine: dict = {"machine": {"gpu": None}, "versions": {}, "flags": {}}  # noqa: RUF012

    def after_check(self):
        pass


def run(gpu_checks, checks, output, *, seconds=60.0):
    file = gpu_checks.command.ResultFile(output, {"tiny": True}, len(checks))
    gpu_checks.runner.Runner(
        checks, context=Fake, seconds=seconds, on_entry=file.add, on_machine=file.add_machine
    ).run()
    return json.loads(output.read_text())


def test_every_outcome_is_recorded_and_the_next_check_runs(gpu_checks, tmp_path):
    runner = gpu_checks.runner

    def fails(context):
        raise runner.Failure("the error is nan, expected at most 2", {"error": math.nan})

    def raises(context):
        raise ValueError("no kernel")

    def cannot(context):
        raise runner.Skip("no GPU")

    def unusable(context):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    workers = {
        "good/first": lambda context: {"worker": os.getpid()},
        "bad/fails": fails,
        "bad/raises": raises,
        "bad/no numbers": lambda context: {"error": complex(1, 2)},
        "bad/unusable": unusable,
        "good/second": lambda context: {"worker": os.getpid()},
        "bad/hangs": lambda context: time.sleep(60),
        "good/third": lambda context: {"worker": os.getpid()},
        "bad/dies": lambda context: os._exit(9),
        "other/skipped": cannot,
        "good/last": lambda context: {"worker": os.getpid()},
    }
    checks = [runner.Check(name, function, 1.0 if "hangs" in name else 30.0) for name, function in workers.items()]
    result = run(gpu_checks, checks, tmp_path / "result.json")
    assert [entry["name"] for entry in result["checks"]] == list(workers)
    entries = {entry["name"]: entry for entry in result["checks"]}
    assert {name: entry["status"] for name, entry in entries.items() if name.startswith("bad")} == {
        "bad/fails": "failed",
        "bad/raises": "error",
        "bad/no numbers": "error",
        "bad/unusable": "error",
        "bad/hangs": "timeout",
        "bad/dies": "error",
    }
    assert entries["bad/fails"]["reason"] == "the error is nan, expected at most 2"
    assert entries["bad/fails"]["values"] == {"error": "nan"}
    assert entries["bad/raises"]["reason"] == "ValueError: no kernel"
    assert 'raise ValueError("no kernel")' in entries["bad/raises"]["traceback"][-2]
    assert entries["other/skipped"]["status"] == "skipped"
    assert result["complete"] is True
    # a new process after an unusable GPU, a check that hangs and one that ends the process; not after other failures
    pids = [entries[name]["values"]["worker"] for name in ("good/first", "good/second", "good/third", "good/last")]
    assert len(set(pids)) == 4


def test_a_run_without_time_has_finished_checks_and_names_the_others(gpu_checks, tmp_path):
    checks = [
        gpu_checks.runner.Check("a/quick", lambda context: {}, 30.0),
        gpu_checks.runner.Check("a/slow", lambda context: time.sleep(60), 30.0),
        gpu_checks.runner.Check("a/later", lambda context: {}, 30.0),
    ]
    result = run(gpu_checks, checks, tmp_path / "result.json", seconds=2.0)
    assert [entry["status"] for entry in result["checks"]] == ["passed", "timeout", "skipped"]
    assert result["checks"][-1]["reason"] == "not reached within 2 s"


def test_the_file_is_written_after_every_check(gpu_checks, tmp_path):
    output = tmp_path / "result.json"
    file = gpu_checks.command.ResultFile(output, {"tiny": True}, 2)
    file.add_machine(Fake.machine)
    file.add(gpu_checks.runner.Check("a/first", lambda context: {}, 1.0).entry("passed"))
    result = json.loads(output.read_text())
    assert [entry["name"] for entry in result["checks"]] == ["a/first"]
    assert result["complete"] is False


def assert_schema(result):
    assert set(result) == {
        "schema", "machine", "versions", "flags", "options", "started", "seconds", "complete", "checks",
    }  # fmt: skip
    assert result["schema"] == 1
    assert result["machine"]["gpu"] is None
    assert result["machine"]["processor"]
    assert {"torch", "transformers", "peft", "sepo", "python", "cuda", "flash-attn"} <= set(result["versions"])
    assert {"float32_matmul_precision", "flash_sdp", "environment"} <= set(result["flags"])
    for entry in result["checks"]:
        assert {"name", "status", "reason", "seconds", "budget_seconds", "values"} <= set(entry)
        assert set(entry) - {"name", "status", "reason", "seconds", "budget_seconds", "values", "traceback"} == set()
        assert entry["status"] in STATUSES
        assert (entry["reason"] is None) == (entry["status"] == "passed")
        assert 0 <= entry["seconds"] <= entry["budget_seconds"]


@pytest.mark.host
def test_the_checks_run_in_small_on_a_cpu(tmp_path):
    output = tmp_path / "result.json"
    names = ["start/tiny step", "correctness/step/dpo", "correctness/attention/*-float32", "memory/tiny-bf16",
             "pair_attention/*", "kernels/tiny-bf16", "scoring/tiny", "device/*"]  # fmt: skip
    words = [word for name in names for word in ("--only", name)]
    script = BENCHMARKS / "gpu_check.py"
    env = environment(CUDA_VISIBLE_DEVICES="")
    done = run_command(
        [sys.executable, script, "--tiny", *words, "--output", output], cwd=tmp_path, env=env, fresh=True
    )
    result = json.loads(output.read_text())
    assert_schema(result)
    assert result["complete"] is True
    entries = {entry["name"]: entry for entry in result["checks"]}
    skipped = [name for name, entry in entries.items() if entry["status"] == "skipped"]
    by_length = [name for name in entries if name.startswith("pair_attention/")]
    assert len(by_length) == 4
    assert skipped == [
        "correctness/attention/efficient-float32", "correctness/attention/cudnn-float32", *by_length
    ]  # fmt: skip
    assert entries[skipped[0]]["reason"] == "the efficient kernel is CUDA's"
    assert entries[by_length[0]]["reason"] == "attention with lengths is CUDA's"
    assert {entry["status"] for name, entry in entries.items() if name not in skipped} == {"passed"}
    stages = entries["start/tiny step"]["values"]["contenders"]
    assert stages["host_dpo"]["speed_over_baseline"] == 1.0
    assert stages["sepo"]["seconds"]["min"] <= stages["sepo"]["seconds"]["median"]
    memory = entries["memory/tiny-bf16"]["values"]["contenders"]
    assert memory["sepo"]["step_peak_bytes"] < memory["dpo"]["step_peak_bytes"] < memory["host_dpo"]["step_peak_bytes"]
    assert 1 <= memory["sepo"]["planned_over_measured"] < 2
    variants = entries["kernels/tiny-bf16"]["values"]["contenders"]["dpo"]
    assert variants["all on"]["memory_without"] == 1
    assert variants["all off"]["memory_without"] > variants["pair attention"]["memory_without"] > 1.05
    assert "6 skipped" in done.stdout


@pytest.mark.host
def test_without_the_host_a_plain_step_is_the_baseline(tmp_path):
    """A host that cannot be imported costs its own checks only."""
    (tmp_path / "llamafactory").mkdir()
    (tmp_path / "llamafactory" / "__init__.py").write_text('raise ImportError("this host is broken")')
    output = tmp_path / "result.json"
    env = environment(CUDA_VISIBLE_DEVICES="", PYTHONPATH=os.pathsep.join([str(tmp_path), str(PLUGIN)]))
    names = ["correctness/lora/float32", "speed/tiny-bf16", "memory/tiny-bf16", "kernels/tiny-bf16"]
    words = [word for name in names for word in ("--only", name)]
    command = [sys.executable, BENCHMARKS / "gpu_check.py", "--tiny", *words, "--output", output]
    run_command(command, cwd=tmp_path, env=env, fresh=True)
    entries = {entry["name"]: entry for entry in json.loads(output.read_text())["checks"]}
    assert {name: entry["status"] for name, entry in entries.items()} == dict.fromkeys(names, "passed")
    speed = entries["speed/tiny-bf16"]["values"]
    assert "this host is broken" in speed["host_failure"]
    assert speed["baseline"] == "plain_dpo"
    plain, own = (speed["contenders"][name]["first_batch_loss"] for name in ("plain_dpo", "dpo"))
    assert own == pytest.approx(plain, rel=0.01)  # bfloat16, through two layers
    assert own != pytest.approx(math.log(2), rel=1e-5)  # the policy is not its reference
    memory = entries["memory/tiny-bf16"]["values"]["contenders"]
    assert 0 < memory["sepo"]["step_peak_over_baseline"] < memory["dpo"]["step_peak_over_baseline"] < 1


def test_wrong_values_fail_a_check(gpu_checks, small, monkeypatch):
    """Attention that ignores the window of a layer: the check passes only without the fault."""
    from sepo.forward import attention, sharing_support

    attend_pairs = attention.attend_pairs
    monkeypatch.setattr(sharing_support, "difference", lambda *arguments: None)  # would refuse the model by itself
    values = gpu_checks.correctness.sharing(small, family="Mistral", dtype="float32")
    assert values["values"]["error"] < 1e-5
    monkeypatch.setattr(
        attention, "attend_pairs", lambda *args, sliding_window, **options: attend_pairs(*args, **options)
    )
    with pytest.raises(gpu_checks.runner.Failure, match="values: error"):
        gpu_checks.correctness.sharing(small, family="Mistral", dtype="float32")


def varlen_attn(query, key, value, own, seen, longest_query, longest_key, *, window_size):
    """Stand in for torch's kernel, which is CUDA's: causal attention of each sequence, aligned at the last tokens."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    assert window_size == (-1, 0)
    parts = [states.split(ends.diff().tolist()) for states, ends in ((query, own), (key, seen), (value, seen))]
    outputs = []
    for q, k, v in zip(*parts, strict=True):
        assert len(q) <= longest_query
        assert len(k) <= longest_key
        mask = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        states = (each.transpose(0, 1) for each in (q, k, v))
        outputs.append(scaled_dot_product_attention(*states, attn_mask=mask).transpose(0, 1))
    return torch.cat(outputs)


def test_attention_with_lengths_equals_that_of_each_pair(gpu_checks):
    import torch

    pairs = gpu_checks.pairs
    ways = {"per pair": pairs.per_pair, "with lengths": functools.partial(pairs.with_lengths, varlen_attn)}
    options = {"device": "cpu", "dtype": torch.float32, "heads": 2, "size": 8}
    assert pairs.compared(ways, **options)["with lengths"]["gradients"] < 1e-5

    def wrong(*args, **more):
        return 1.01 * varlen_attn(*args, **more)

    with pytest.raises(gpu_checks.runner.Failure, match=r"values: error 0\.01 with lengths"):
        pairs.compared({**ways, "with lengths": functools.partial(pairs.with_lengths, wrong)}, **options)


@pytest.mark.parametrize("wrong", [math.nan, 1.0])
def test_an_error_that_is_large_or_not_a_number_fails(gpu_checks, wrong):
    import torch

    truth = (torch.ones(3), {"w": torch.ones(2)})
    found = (torch.ones(3), {"w": torch.tensor([1.0, 1.0 + wrong])})
    judged = gpu_checks.correctness.judged
    assert judged("float32", ours=truth, plain=truth, truth=truth)["values"]["error"] == 0
    with pytest.raises(gpu_checks.runner.Failure, match="gradients: error"):
        judged("float32", ours=found, plain=truth, truth=truth)
    with pytest.raises(gpu_checks.runner.Failure, match="gradients: error inf"):
        judged("float32", ours=(truth[0], {}), plain=truth, truth=truth)


def test_a_name_that_matches_no_check_is_an_error(gpu_checks):
    with pytest.raises(SystemExit, match="no check matches nothing/at all"):
        gpu_checks.command.main(["--tiny", "--only", "nothing/at all"])


def test_a_large_shape_is_skipped_without_a_gpu(gpu_checks, tmp_path):
    context = SimpleNamespace(cuda=False, tiny=False, folder=tmp_path)
    context.sessions = gpu_checks.sessions.Sessions(context)
    for check in gpu_checks.command.all_checks(tiny=False):
        if check.name.startswith(("speed/7b", "memory/8b", "kernels/7b", "profile/7b", "scoring/")):
            entry = gpu_checks.runner.outcome(check, context)
            assert entry["status"] == "skipped"
            assert "needs a CUDA GPU; --tiny runs without one" in entry["reason"]


def test_the_checks_for_a_gpu_have_names_of_their_own_and_a_budget(gpu_checks, capsys):
    checks = gpu_checks.command.all_checks(tiny=False)
    assert len({check.name for check in checks}) == len(checks)
    gpu_checks.command.main(["--list"])
    assert capsys.readouterr().out.splitlines()[0].endswith("start/tiny step")
