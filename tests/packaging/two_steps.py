"""Train two steps of yaml_examples/sepo_lora.yaml on a tiny local model, by an environment's own command.

    .venv/bin/python -m tests.packaging.two_steps [BIN]

BIN is the directory with the environment's `sepo` (default: that of the Python that runs this file, which creates the
models). Nothing is downloaded.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "yaml_examples" / "sepo_lora.yaml"
STEPS = 2


def make_models(folder: Path) -> None:
    """Save the models `policy`, `oracle` and `base` and a data set of pairs, all tiny."""
    from tests.support import tiny

    tiny.save_model(folder / "base", seed=0)
    tiny.save_model(folder / "oracle", seed=1, noise_over=folder / "base")
    tiny.save_model(folder / "policy", seed=2)
    tiny.save_pairs(folder / "data")


def overrides(folder: Path) -> list[str]:
    """Return the overrides for tiny models and data, and for a short run."""
    values = {
        "model_name_or_path": folder / "policy", "oracle_base_model": folder / "base",
        "oracle_model": folder / "oracle", "oracle_base_model_adapters": "null",
        "oracle_model_adapters": "null", "dataset_dir": folder / "data",
        "dataset": "tiny_pairs", "template": "chatml", "cutoff_len": 128, "preprocessing_num_workers": 1,
        "dataloader_num_workers": 0, "output_dir": folder / "out", "token_scores_dir": folder / "scores",
        "max_steps": STEPS, "gradient_accumulation_steps": 1, "logging_steps": 1, "bf16": "false", "use_cpu": "true",
    }  # fmt: skip
    return [f"{key}={value}" for key, value in values.items()]


def environment(commands: Path) -> dict[str, str]:
    """Return the variables of a shell in which the environment is active, offline."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")}
    return {**kept, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}


def train(folder: Path, *, commands: Path, recipe: Path = RECIPE) -> list[dict]:
    """Run the recipe in a directory that `make_models` filled.

    Returns:
        The log, one entry per step.

    Raises:
        RuntimeError: the command failed, or left other than two steps that each selected some of the tokens.
    """
    words = [commands / "sepo", "train", recipe, *overrides(folder)]
    done = subprocess.run(
        words, cwd=folder, env=environment(commands), capture_output=True, text=True, check=False, timeout=900
    )
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
    state = json.loads((folder / "out" / "trainer_state.json").read_text())
    steps = [entry for entry in state["log_history"] if "loss" in entry]
    if len(steps) != STEPS or not all(0 < entry["select/chosen_ratio"] < 1 for entry in steps):
        raise RuntimeError(f"expected {STEPS} steps that select some of the tokens, found {steps}")
    if not (folder / "out" / "adapter_model.safetensors").is_file():
        raise RuntimeError(f"no adapter was saved in {folder / 'out'}: {sorted(os.listdir(folder / 'out'))}")
    return steps


def main() -> None:
    """Create the models, train, and print the log."""
    commands = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as name:
        make_models(Path(name))
        for step in train(Path(name), commands=commands.absolute()):
            print(f"step {step['step']}: loss {step['loss']:.4f}, selected {step['select/chosen_ratio']:.0%}")


if __name__ == "__main__":
    main()
