"""Configs for Axolotl with tiny models and data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support import tiny

BIN = Path(sys.executable).parent
SHARED = Path(__file__).parents[3] / "shared"
"""Directory beside the repository with real data; it may be absent."""
PLUGIN = "sepo.hosts.axolotl.SePOPlugin"
STAGES = ("sepo", "selective_dpo", "treg", "minor_dpo")


def messages(rows):
    """Convert LLaMA-Factory's sharegpt rows to the format of Axolotl's ``chat_template.default``."""
    return [
        {
            "messages": [{"role": "user", "content": row["conversations"][0]["value"]}],
            **{side: {"role": "assistant", "content": row[side]["value"]} for side in ("chosen", "rejected")},
        }
        for row in rows
    ]


def response(row, side):
    """Return the token ids of a response of a tokenized row."""
    return [label for label in row[f"{side}_labels"] if label != -100]


def save_rows(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_at(path: Path) -> dict:
    """Return the config's entry for a file of rows."""
    return {"path": str(path), "ds_type": "json", "split": "train", "type": "chat_template.default"}


def world(root: Path) -> Path:
    tiny.save_model(root / "base", seed=0)
    tiny.save_model(root / "oracle", seed=1, noise_over=root / "base")
    tiny.save_model(root / "policy", seed=2)
    save_rows(root / "pairs.jsonl", messages(tiny.pairs(24)))
    return root


def config(root: Path, output: Path, **overrides) -> dict:
    """Return the config of a LoRA run of 4 steps, with ``overrides`` applied; None removes a key."""
    made = {
        "base_model": str(root / "policy"),
        "chat_template": "chatml",
        "special_tokens": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        "plugins": [PLUGIN],
        "datasets": [rows_at(root / "pairs.jsonl")],
        "dataset_prepared_path": str(output.parent / "prepared"),
        "sequence_len": 512,
        "adapter": "lora",
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_target_linear": True,
        "output_dir": str(output),
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "max_steps": 4,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "optimizer": "adamw_torch",
        "lr_scheduler": "linear",
        "bf16": False,
        "fp16": False,
        "tf32": False,
        "val_set_size": 0,
        "seed": 3,
        "save_strategy": "no",
        "dataset_num_proc": 0,  # no worker processes
        "gradient_checkpointing": False,
    }
    made.update(overrides)
    return {name: value for name, value in made.items() if value is not None}


def block(root: Path, output: Path, stage: str, **more) -> dict:
    """Return the block ``sepo`` of a stage."""
    made = {"token_scores_dir": str(output.parent / "scores"), **more}
    if stage == "sepo":
        made |= {"oracle_model": str(root / "oracle"), "oracle_base_model": str(root / "base")}
    return made


def write(made: dict, path: Path) -> Path:
    path.write_text(yaml.safe_dump(made))
    return path


def environment(**extra) -> dict:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {
        **kept, "OMP_NUM_THREADS": "1", "AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **extra,
    }  # fmt: skip


def other_python() -> str:
    """Return the interpreter of LLaMA-Factory's environment, which `make test-axolotl` sets."""
    path = os.environ.get("SEPO_LLAMAFACTORY_PYTHON")
    if not path or not Path(path).exists():
        pytest.fail("SEPO_LLAMAFACTORY_PYTHON names no interpreter with LLaMA-Factory: run `make test-axolotl`")
    return path


def run_other(words, folder: Path) -> subprocess.CompletedProcess:
    """Run the interpreter of LLaMA-Factory's environment with these words."""
    env = {name: value for name, value in environment(USE_V1="0").items() if name != "PATH"}
    env["PATH"] = f"{Path(other_python()).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [other_python(), *map(str, words)], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done
