"""Whole runs by `sepo train`, in a process of their own: scoring by an oracle, 20 steps, a saved adapter."""

import functools
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import gpu_step

from gpu_checks.runner import Check, Failure, Skip
from gpu_checks.sessions import Setup

STEPS = 20
SECONDS = 100


def checks(*, tiny):
    """Return the checks of this group."""
    shape = "tiny" if tiny else "0.5b"
    return [
        Check(f"end_to_end/{shape}", functools.partial(trained, shape=shape), SECONDS),
        Check("end_to_end/demo model", functools.partial(trained, shape=None), SECONDS),
        Check("end_to_end/plan", functools.partial(planned, shape=shape), 60),
    ]


def trained(context, *, shape):
    """Train on random pairs with an oracle's scores; the loss must be finite at every step and fall."""
    context.sessions.close()
    folder = context.folder / f"run-{shape or 'demo'}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    start = time.perf_counter()
    done = _sepo(context, "train", _recipe(context, shape, folder))
    seconds = time.perf_counter() - start
    log = folder / "output" / "trainer_log.jsonl"
    values = {"seconds": seconds, "exit_status": done.returncode, "last_lines": done.stderr.splitlines()[-8:]}
    if done.returncode:
        raise Failure(f"`sepo train` ended with exit status {done.returncode}", values)
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    losses = [entry["loss"] for entry in entries if entry.get("loss") is not None]
    values = {"seconds": seconds, "losses": losses, "files": sorted(file.name for file in log.parent.iterdir())}
    if len(losses) != STEPS or not all(math.isfinite(loss) for loss in losses):
        raise Failure(f"{len(losses)} finite losses are logged, expected {STEPS}", values)
    if not sum(losses[-5:]) < sum(losses[:5]):
        raise Failure("the loss did not fall", values)
    if "adapter_model.safetensors" not in values["files"]:
        raise Failure("no adapter was saved", values)
    return values


def planned(context, *, shape):
    """Run `sepo plan` as a command."""
    setup = Setup(shape, length=64, rounds=2)
    folder = context.folder / "plan"
    folder.mkdir(exist_ok=True)
    recipe = _written(setup.recipe(context, token_scorer="random", output_dir=str(folder / "output")), folder)
    done = _sepo(context, "plan", recipe, "-o", str(folder / "plan.json"))
    if done.returncode:
        raise Failure(
            f"`sepo plan` ended with exit status {done.returncode}", {"last_lines": done.stderr.splitlines()[-8:]}
        )
    return {"plan": json.loads((folder / "plan.json").read_text(encoding="utf-8"))}


def _recipe(context, shape, folder):
    if shape is None:
        from sepo.demo.model import default_model_directory

        model = default_model_directory()
        if context.tiny or not (model / "config.json").is_file():
            raise Skip("--tiny" if context.tiny else f"the demonstration's model is not in {model}")
        setup, template = Setup("tiny", length=64, rounds=8), "smollm"
        recipe = {**setup.recipe(context), "model_name_or_path": str(model), "template": template, "cutoff_len": 512}
    else:
        setup = Setup(shape, length=64 if context.tiny else 512, rounds=8)
        recipe = setup.recipe(context)
    oracle = folder / "oracle"
    _save_oracle(Path(recipe["model_name_or_path"]), oracle)
    recipe |= {
        "do_train": True,
        "output_dir": str(folder / "output"),
        "token_scores_dir": str(folder / "scores"),
        "oracle_model": str(oracle),
        "oracle_base_model": recipe["model_name_or_path"],
        "max_steps": STEPS,
        "logging_steps": 1,
        "learning_rate": 2e-3 if context.tiny else 5e-4,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": "none",
    }
    return _written(recipe, folder)


def _written(recipe, folder):
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return str(file)


def _save_oracle(model, folder):
    """Write the model with seeded noise."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    torch.manual_seed(2)
    for file in folder.glob("*.safetensors"):
        weights = load_file(file)
        for weight in weights.values():
            weight.add_(0.1 * weight.float().std().nan_to_num(0.0).to(weight.dtype) * torch.randn_like(weight))
        save_file(weights, file, metadata={"format": "pt"})


def _sepo(context, *words):
    plugin = str(Path(gpu_step.__file__).parents[1] / "plugin")
    path = os.pathsep.join([plugin, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "sepo", *words],
        env={**os.environ, "PYTHONPATH": path}, cwd=context.folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
