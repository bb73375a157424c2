"""Runs of recipes under an engine: one process, DDP, DeepSpeed's ZeRO stages and FSDP2, on CPUs."""

import contextlib
import json
import os
import signal
import sys
import time

from tests.support import warm
from tests.support.recipes import BIN, WORKER, environment

FSDP2 = """compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_cpu_ram_efficient_loading: false
  fsdp_offload_params: false
  fsdp_reshard_after_forward: true
  fsdp_state_dict_type: FULL_STATE_DICT
  fsdp_transformer_layer_cls_to_wrap: {layer}
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


def started(engine, recipes, folder, *, launched=False, layer="LlamaDecoderLayer"):
    """Return commands and environments that run recipes under an engine, whose keys are added to the recipes.

    ``launched``: return the launcher's command, which starts the ranks, instead of the commands of the ranks.
    ``layer``: the class that FSDP2 shards.
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
        config.write_text(FSDP2.format(port=port, layer=layer))
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
