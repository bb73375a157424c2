"""Recipes for the tiny models, and functions that run them in subprocesses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from tests.support import warm

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("engine_worker.py")

# Keys that turn the SePO recipe below into one of another stage.
STAGES = {
    "sepo": {},
    "selective_dpo": {"oracle_model": None, "oracle_base_model": None},
    "minor_dpo": {"oracle_model": None, "oracle_base_model": None},
    "treg": {"treg_rewards": "oracle"},
}


def sepo_recipe(world: Path, output: Path, **overrides) -> dict:
    recipe = {
        "model_name_or_path": str(world / "policy"),
        "template": "chatml",
        "dataset_dir": str(world / "data"),
        "dataset": "tiny_pairs",
        "cutoff_len": 128,
        "stage": "sepo",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 4,
        "lora_target": "all",
        "oracle_model": str(world / "oracle"),
        "oracle_base_model": str(world / "base"),
        "token_scores_dir": str(output.parent / "scores"),
        "output_dir": str(output),
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "logging_steps": 1,
        "learning_rate": 1.0e-3,
        "report_to": "none",
        "use_cpu": True,
        "seed": 3,
    }
    recipe.update(overrides)
    return {name: value for name, value in recipe.items() if value is not None}


def host_recipe(world: Path, output: Path, **overrides) -> dict:
    """Return the same recipe for the host's DPO."""
    sepo_keys = ("oracle_model", "oracle_base_model", "token_scores_dir")
    recipe = sepo_recipe(world, output, **{"stage": "dpo", **overrides})
    return {name: value for name, value in recipe.items() if name not in sepo_keys}


def write(recipe: dict, path: Path) -> Path:
    path.write_text(yaml.safe_dump(recipe))
    return path


def python_path() -> str:
    """Return the PYTHONPATH of programs that import ``tests``: this process's, and the repository before it."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def environment(**extra) -> dict:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**kept, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **extra}


def run(
    words, *, cwd: Path, env: dict | None = None, expect: int | None = 0, fresh: bool = False, forks: bool = False
) -> subprocess.CompletedProcess:
    """Run a command to its end.

    ``fresh``: surely in a process that has imported nothing, as a user's. ``forks``: what it starts may be forks, too.
    """
    words, env = [str(word) for word in words], env or environment()
    if fresh:
        done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=600)
    else:
        done = warm.run(words, cwd=cwd, env=env, timeout=600, forks=forks)
    if expect is not None and done.returncode != expect:
        raise AssertionError(f"exit status {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done


def sepo_train(recipe: dict, folder: Path, *overrides, name="recipe.yaml", **options) -> subprocess.CompletedProcess:
    return run([BIN / "sepo", "train", write(recipe, folder / name), *overrides], cwd=folder, **options)


def logged(output: Path) -> list[dict]:
    """Return the trainer's log without timings."""
    state = json.loads((output / "trainer_state.json").read_text())
    timed = ("runtime", "per_second", "flos")
    return [
        {name: value for name, value in entry.items() if not any(word in name for word in timed)}
        for entry in state["log_history"]
    ]


def adapter(output: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(output / "adapter_model.safetensors")


def same_weights(first: dict, second: dict) -> bool:
    import torch

    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
