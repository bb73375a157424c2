"""Engines: two CPU processes under each give one process's losses and weights; killed runs resume."""

import shutil
import time

import pytest
import torch

from tests.support.engines import begun, finished, kill, started
from tests.support.recipes import STAGES, adapter, logged, same_weights, sepo_recipe
from tests.support.tolerance import LOG_PROB

pytestmark = pytest.mark.host


def stage_recipes(world, folder, engine, scores):
    pairs = 4 if engine == "one" else 2
    changed = {
        stage: {**keys, **({"ref_model": str(world / "base")} if stage == "selective_dpo" else {})}
        for stage, keys in STAGES.items()
    }
    return [
        sepo_recipe(
            world, folder / stage, stage=stage, per_device_train_batch_size=pairs, gradient_accumulation_steps=2,
            max_steps=3, disable_shuffling=True, token_scores_dir=str(scores), save_strategy="no",
            # Of the 24 pairs, four remain for the last batches of two processes: not enough for the first one.
            eval_dataset="tiny_pairs", eval_strategy="steps", eval_steps=3, per_device_eval_batch_size=5, **keys,
        )
        for stage, keys in changed.items()
    ]  # fmt: skip


def results(folder):
    """Return logged losses, metrics of the evaluation and saved adapters by stage."""
    found = {}
    for stage in STAGES:
        entries = logged(folder / stage)
        (evaluation,) = (entry for entry in entries if "eval_loss" in entry)
        found[stage] = ([entry["loss"] for entry in entries if "loss" in entry], evaluation, adapter(folder / stage))
    return found


def all_stages(world, folder, engine):
    """Run all stages; one engine of each kind is started by its launcher (`torchrun` alone: test_distributed)."""
    launched = engine in ("zero3", "fsdp2")
    finished(
        started(engine, stage_recipes(world, folder, engine, folder / "scores"), folder, launched=launched), folder
    )
    return results(folder)


@pytest.fixture(scope="module")
def one_process(world, tmp_path_factory):
    return all_stages(world, tmp_path_factory.mktemp("one"), "one")


@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3", "fsdp2"])
def test_two_processes_give_what_one_gives(engine, world, one_process, tmp_path):
    found = all_stages(world, tmp_path, engine)
    for stage, (losses, evaluation, weights) in one_process.items():
        theirs, evaluated, saved = found[stage]
        assert len(losses) == 3
        assert theirs == pytest.approx(losses, abs=LOG_PROB), stage
        assert {"eval_rewards/accuracies", "eval_select/tokens"} <= evaluation.keys()
        assert evaluated == pytest.approx(evaluation, rel=1e-4, abs=1e-4), stage
        assert saved.keys() == weights.keys()
        moved = max(weight.abs().max().item() for name, weight in weights.items() if "lora_B" in name)
        assert moved > 1e-4, stage  # B begins at zero
        for name, weight in weights.items():
            torch.testing.assert_close(saved[name], weight, rtol=0, atol=1e-5, msg=lambda m, s=stage: f"{s}: {m}")


def killed(commands, *, folder, log_file, at):
    """Start, and kill every process as soon as a text appears in the log of the run."""
    with open(folder / "killed.log", "w") as log:
        processes = begun(commands, folder, log)
        deadline = time.monotonic() + 300
        while not contains(log_file, at) and processes[0].poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        kill(processes)
    assert contains(log_file, at), (folder / "killed.log").read_text()[-3000:]


def contains(file, text):
    return file.is_file() and text in file.read_text()


@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_a_killed_run_of_two_processes_resumes_to_the_same_weights(engine, world, tmp_path):
    """Live selection: what is selected depends on the policy at every step."""
    keys = {"stage": "selective_dpo", "ref_model": str(world / "base"), "oracle_model": None, "oracle_base_model": None,
            "max_steps": 6, "save_steps": 2, "select_rule": "quantile", "warmup_ratio": 0.5}  # fmt: skip
    undisturbed = sepo_recipe(world, tmp_path / "undisturbed", **keys)
    broken_off = sepo_recipe(world, tmp_path / "broken_off", **keys)
    # Step 3 is a step of all processes: each has written its part of checkpoint-2.
    log_file = tmp_path / "broken_off" / "sepo_log.jsonl"
    killed(started(engine, [broken_off], tmp_path), folder=tmp_path, log_file=log_file, at='"step": 3,')
    for later in ("checkpoint-4", "checkpoint-6"):  # if the run continued after the signal
        shutil.rmtree(tmp_path / "broken_off" / later, ignore_errors=True)
    text = finished(started(engine, [broken_off, undisturbed], tmp_path), tmp_path)
    assert "Resuming training from" in text
    assert same_weights(adapter(tmp_path / "broken_off"), adapter(tmp_path / "undisturbed"))
    last = logged(tmp_path / "undisturbed")[-1]
    assert logged(tmp_path / "broken_off")[-1]["step"] == last["step"] == 6
