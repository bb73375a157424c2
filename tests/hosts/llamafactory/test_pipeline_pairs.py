"""`sepo pipeline` with sampled pairs: two rounds from recipe to policy, killed and continued; what it refuses."""

import json
import os
import signal
import time

import pytest

from sepo.cli import main
from sepo.hosts.llamafactory import child_runs, pipeline
from sepo.hosts.llamafactory.chain_steps import plan_steps
from tests.support import tiny, warm
from tests.support.recipes import BIN, adapter, environment, logged, run, same_weights, write

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def place(world, tmp_path_factory):
    """Return a directory with the policy `ending` and the data sets `tiny_pairs` and `tiny_plain`, with answers."""
    root = tmp_path_factory.mktemp("sampled")
    tiny.save_ending(root / "ending", over=world / "policy")
    tiny.save_pairs(root / "data", count=8)
    file = root / "data" / "tiny_plain.json"
    file.write_text(json.dumps([{**row, "answer": "grass"} for row in json.loads(file.read_text())]))
    return root


def recipe_of(place, tmp_path, **keys):
    return {
        "model_name_or_path": str(place / "ending"), "template": "chatml", "dataset_dir": str(place / "data"),
        "dataset": "tiny_plain", "cutoff_len": 128, "finetuning_type": "lora", "lora_rank": 2, "max_steps": 1,
        "per_device_train_batch_size": 2, "learning_rate": 1.0e-2, "report_to": "none", "use_cpu": True, "seed": 5,
        "output_dir": str(tmp_path / "out"), "token_scores_dir": str(tmp_path / "scores"), "logging_steps": 1,
        "base": False, "eval_dataset": "tiny_pairs",
        "pairs": {"judge": "regex", "expected_column": "answer", "pairs_samples": 6, "pairs_max_new_tokens": 8,
                  "pairs_temperature": 1.0, "pairs_batch_tokens": 200},
        "policy": {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4},
        **keys,
    }  # fmt: skip


def killed_when(made, words, tmp_path):
    """Kill a command and what it has started once a file is there."""
    with open(tmp_path / "log", "w") as log:
        process = warm.start(words, cwd=tmp_path, env=environment(), stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline and not made():
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
    assert made(), (tmp_path / "log").read_text()[-2000:]


def test_two_rounds_from_prompts_to_policy(place, tmp_path, capsys):
    path, out = write(recipe_of(place, tmp_path), tmp_path / "pipeline.yaml"), tmp_path / "out"
    words = [BIN / "sepo", "pipeline", path]
    done = run(words, cwd=tmp_path, forks=True)
    assert "[4/4] policy: done" in done.stdout
    assert "responses to 8 prompts of tiny_plain, by judge regex" in done.stdout
    summary = json.loads((out / "pairs" / "summary.json").read_text())
    sample = json.loads((out / "sample" / "oracle_pairs.json").read_text())
    assert summary["pairs"] == len(sample) >= 2
    rows = [json.loads(line) for line in (out / "pairs" / "pairs.jsonl").read_text().splitlines()]
    assert [row["chosen"]["content"] for row in rows] == [row["chosen"]["value"] for row in sample]
    assert any("eval_loss" in entry for entry in logged(out / "policy"))  # of the user's pairs

    # One more round, killed while it samples; the finished round stays as it is.
    second = out / "round_2"
    killed_when((second / "pairs" / "pairs_settings.json").exists, [*words, "rounds=2"], tmp_path)
    assert not (second / "pipeline" / "pairs.done.json").exists()
    assert main(["status", str(out)]) == 0
    shown = capsys.readouterr().out
    assert f"round 1, policy: finished, {out / 'policy'}" in shown
    assert f"round 2, pairs: started, {second / 'pairs'}" in shown
    again = run([*words, "rounds=2"], cwd=tmp_path, forks=True)
    assert again.stdout.count("finished before, in") == 4
    assert "[8/8] round 2, policy: done" in again.stdout
    adapters = f"{out / 'policy'},{second / 'policy'}"
    assert (
        f"policy of the last round: model_name_or_path={place / 'ending'} adapter_name_or_path={adapters}"
        in again.stdout
    )
    sampled = json.loads((second / "pairs" / "pairs_settings.json").read_text())
    assert sampled["notes"]["policy"]["adapters"] == [str(out / "policy")]
    assert sampled["settings"]["pairs_seed"] == 6
    assert (second / "pairs" / "samples.jsonl").read_text() != (out / "pairs" / "samples.jsonl").read_text()
    scored = json.loads((second / "policy" / "sepo_settings.json").read_text())["oracle"]
    assert scored["base"]["adapters"] == [str(out / "policy")]
    assert scored["oracle"]["adapters"] == [str(out / "policy"), str(second / "oracle")]
    assert not same_weights(adapter(second / "policy"), adapter(out / "policy"))

    # Finished: nothing is run, and other settings are refused by name.
    times = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}
    assert run([*words, "rounds=2"], cwd=tmp_path).stdout.count("finished before, in") == 8
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()} == times
    changed = run([*words, "rounds=2", "pairs.pairs_temperature=0.7"], cwd=tmp_path, expect=2)
    assert "step 'round 1, pairs'" in changed.stderr
    assert "pairs_temperature was 1.0, now 0.7" in changed.stderr
    assert run([*words], cwd=tmp_path).stdout.count("finished before, in") == 4  # the first round alone


def test_a_dry_run_has_the_memory_of_sampling(place, tmp_path, capsys):
    path = write(recipe_of(place, tmp_path, rounds=2), tmp_path / "pipeline.yaml")
    assert main(["pipeline", str(path), "--dry-run"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines() if str(tmp_path / "out") in line]
    assert [" ".join(row[:3]) for row in shown][::4] == ["round 1, pairs", "round 2, pairs"]
    assert all("MiB" in row for row in (shown[0], shown[3], shown[4], shown[7]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"pairs": {}}, "judge is missing"),
        ({"pairs": {"judge": "regex"}}, "judge is regex, but expected_column is missing"),
        ({"pairs": {"judge": "reward_model", "judge_model": "absent/nowhere"}}, "judge_model"),
        ({"dataset": "unknown"}, "Undefined dataset unknown"),
        ({"dataset": None}, "dataset is missing; name the data set with the prompts on top"),
        ({"eval_dataset": "tiny_plain"}, "dataset 'tiny_plain' has no pairs"),
        ({"eval_dataset": "absent"}, "eval_dataset is absent, expected data sets of"),
        ({"pairs": {"judge": "regex", "expected_column": "answer", "pairs_tmperature": 1}},
         "step 'pairs': unknown key 'pairs_tmperature'. Did you mean 'pairs_temperature'?"),
        ({"pairs": {"judge": "regex", "expected_column": "answer", "pairs_prompts": "none.jsonl"}}, "none.jsonl"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_before_the_first_step(place, tmp_path, capsys, keys, message):
    path = write({**recipe_of(place, tmp_path), **keys}, tmp_path / "pipeline.yaml")
    assert main(["pipeline", str(path)]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_comparison_has_no_sampled_pairs(place, tmp_path, capsys):
    for keys in ({"pairs": {}}, {"rounds": 2}):
        shared = {name: value for name, value in recipe_of(place, tmp_path).items() if name not in ("pairs", "policy")}
        path = write({**shared, **keys, "variants": {"a": {"stage": "minor_dpo"}}}, tmp_path / "compare.yaml")
        assert main(["compare", str(path), "--dry-run"]) == 2
        assert f"'{next(iter(keys))}' is one of sepo pipeline" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("devices", "forced", "engine", "vllm", "processes"),
    [(1, False, None, False, 1), (4, False, None, False, 4), (4, False, None, True, 1),
     (4, False, "transformers", True, 4), (1, True, None, False, 2)],
)  # fmt: skip
def test_sampling_uses_the_processes_of_training_except_with_vllm(
    place, tmp_path, monkeypatch, devices, forced, engine, vllm, processes
):
    from llamafactory.extras import misc

    from sepo.evaluation import vllm_sampling

    monkeypatch.setattr(misc, "get_device_count", lambda: devices)
    monkeypatch.setattr(
        vllm_sampling, "why_not_vllm", lambda spec, processes: None if vllm else "vLLM is not installed"
    )
    monkeypatch.delenv("NPROC_PER_NODE", raising=False)
    if forced:
        monkeypatch.setenv("FORCE_TORCHRUN", "1")
        monkeypatch.setenv("NPROC_PER_NODE", "2")
    recipe = recipe_of(place, tmp_path)
    (pairs, *_) = plan_steps({**recipe, "pairs": {**recipe["pairs"], **({"pairs_engine": engine} if engine else {})}})
    assert pipeline.sampling_processes(pairs.recipe) == processes
    started = []
    monkeypatch.setattr(
        child_runs, "_words", lambda file, command, number: started.append((command, number)) or ["true"]
    )
    pipeline._run(pairs, tmp_path / "records")
    assert started == [("pairs", processes)]
