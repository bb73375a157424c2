"""Engines: two CPU processes under each give one process's losses and weights; killed runs resume."""

import contextlib
import json
import os
import shutil
import signal
import sys
import time

import pytest
import torch

from tests.support import warm
from tests.support.recipes import BIN, STAGES, WORKER, adapter, environment, logged, same_weights, sepo_recipe
from tests.support.tolerance import LOG_PROB

pytestmark = pytest.mark.host

FSDP2 = """compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_cpu_ram_efficient_loading: false
  fsdp_offload_params: false
  fsdp_reshard_after_forward: true
  fsdp_state_dict_type: FULL_STATE_DICT
  fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer
machine_rank: 0
main_process_port: {port}
mixed_precision: 'no'
num_machines: 1
num_processes: 2
use_cpu: true
"""


def deepspeed_config(folder, stage):
    """Write the host's DeepSpeed JSON of a ZeRO stage, for a CPU."""
    zero = {"stage": stage, "overlap_comm": False, "contiguous_gradients": True}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    automatic = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
                 "gradient_clipping")  # fmt: skip
    config = {
        **dict.fromkeys(automatic, "auto"), "zero_allow_untested_optimizer": True,
        "fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}, "zero_optimization": zero,
    }  # fmt: skip
    path = folder / f"z{stage}.json"
    path.write_text(json.dumps(config))
    return path


def started(engine, recipes, folder, *, launched=False):
    """Return commands and environments that run recipes under an engine, whose keys are added to the recipes.

    ``launched``: return the launcher's command, which starts the ranks, instead of the commands of the ranks.
    """
    port = 20000 + (os.getpid() * 7 + len(engine) * 131) % 20000
    extra = {}
    if engine.startswith("zero"):
        config = deepspeed_config(folder, int(engine[-1]))
        recipes = [{**recipe, "deepspeed": str(config), "use_cpu": None} for recipe in recipes]
        extra["DS_ACCELERATOR"] = "cpu"
    file = folder / f"{engine}-{len(list(folder.glob('*.json')))}.json"
    file.write_text(json.dumps([{k: v for k, v in recipe.items() if v is not None} for recipe in recipes]))
    if engine == "fsdp2":
        config = folder / "fsdp.yaml"
        config.write_text(FSDP2.format(port=port))
        return [([BIN / "accelerate", "launch", "--config_file", config, WORKER, file], environment())]
    processes = 1 if engine == "one" else 2
    if launched:
        command = [BIN / "torchrun", "--nproc_per_node", processes, "--master_port", port, WORKER, file]
        return [(command, environment(**extra))]
    extra |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    extra |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
    return [
        ([sys.executable, WORKER, file], environment(**extra, RANK=str(rank), LOCAL_RANK=str(rank)))
        for rank in range(processes)
    ]


def begun(commands, folder, log):
    return [
        warm.start(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True, forks=True)
        for command, env in commands
    ]


def kill(processes):
    """Kill processes with their children."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def finished(commands, folder):
    """Run to the end, or to the first failure; return the output."""
    with open(folder / "ranks.log", "w+") as log:
        processes = begun(commands, folder, log)
        deadline = time.monotonic() + 600
        while None in (ended := [process.poll() for process in processes]) and not any(ended):
            if time.monotonic() > deadline:
                ended = ["too slow"]
                break
            time.sleep(0.01)
        if any(ended):
            kill(processes)
        log.seek(0)
        text = log.read()
    assert not any(ended), f"exit status {ended}:\n{text[-5000:]}"
    return text


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
