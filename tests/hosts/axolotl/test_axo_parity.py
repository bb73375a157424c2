"""The same rows, weights and settings in both hosts' trainers, each in its environment; and a store shared by both."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sepo.scoring.contrastive import REWARD_COLUMNS
from sepo.training.selection_columns import IGNORE_INDEX, SCORE_COLUMNS
from tests.support import axo

HALF = Path(__file__).parents[2] / "support" / "half.py"


def token_rows(count=6):
    """Return rows of token ids with different prompts, responses, scores and rewards."""
    random = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        prompt = random.integers(3, 300, 7).tolist()
        row = {}
        for side, scores, rewards in zip(("chosen", "rejected"), SCORE_COLUMNS, REWARD_COLUMNS, strict=True):
            response = [*random.integers(3, 300, int(random.integers(4, 15))).tolist(), 2]
            row[f"{side}_input_ids"] = prompt + response
            row[f"{side}_labels"] = [IGNORE_INDEX] * len(prompt) + response
            row[scores] = random.normal(size=len(response)).astype("f4").tolist()
            row[rewards] = random.uniform(-0.5, 0.5, len(response)).astype("f4").tolist()
        rows.append(row)
    return rows


OBJECTIVES = {
    "confpo": {"objective": "confpo"},
    "tgdpo": {"objective": "tgdpo", "tgdpo_alpha": 2.0, "pref_beta": 0.5},
    "tgdpo of the user's scores": {"objective": "tgdpo", "token_scorer": "file"},
    "d2po": {"objective": "d2po"},
    "ld_dpo": {"objective": "ld_dpo", "ld_alpha": 0.0},
    "sampo": {"objective": "sampo", "pref_beta": 0.5},
    "tis_dpo": {"objective": "tis_dpo"},
    "critical_dpo": {"objective": "critical_dpo"},
    "sum": {"objective": {"dpo": 0.8, "orpo": 0.2, "sft": 0.1}},
    "sum of weighted terms": {"objective": {"d2po": 0.8, "tdpo2": 0.2}, "token_weight": "position"},
    "sepo by position": {"stage": "sepo", "token_weight": "position"},
}
"""Blocks of stage minor_dpo, or of the stage that they name, besides the four stages with their defaults."""


def test_losses_and_gradients_of_every_stage_are_those_of_the_other_host(root, tmp_path):
    from tests.support import tiny

    tiny.save_pairs(tmp_path / "data")
    jobs = {}
    for name in (*axo.STAGES, *OBJECTIVES):
        stage = OBJECTIVES.get(name, {}).get("stage", name if name in axo.STAGES else "minor_dpo")
        scored = "sepo" if name in ("tgdpo", "tis_dpo") else stage
        block = {**axo.block(root, tmp_path / "out", scored), **OBJECTIVES.get(name, {})}
        rows = token_rows()
        if name == "critical_dpo":
            rows = [{**row, **{column: [abs(v) % 1 for v in row[column]] for column in SCORE_COLUMNS}} for row in rows]
        jobs[name] = {
            "policy": str(root / "policy"), "adapter": str(tmp_path / "adapter.safetensors"), "rows": rows,
            "output": str(tmp_path / "out"), "config": axo.config(root, tmp_path / "out", rl=stage, sepo=block),
            "recipe": {
                **block, "stage": stage, "do_train": True, "finetuning_type": "lora", "template": "chatml",
                "model_name_or_path": str(root / "policy"), "dataset_dir": str(tmp_path / "data"),
                "dataset": "tiny_pairs", "output_dir": str(tmp_path / "out"), "use_cpu": True, "report_to": "none",
                "per_device_train_batch_size": 6, "seed": 3, "remove_unused_columns": False,
            },
        }  # fmt: skip
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    files = {host: tmp_path / f"{host}.safetensors" for host in ("llamafactory", "axolotl")}
    axo.run_other([HALF, "llamafactory", tmp_path / "jobs.json", files["llamafactory"]], tmp_path)
    subprocess.run(
        [sys.executable, HALF, "axolotl", tmp_path / "jobs.json", files["axolotl"]],
        cwd=tmp_path, env=axo.environment(), check=True,
    )  # fmt: skip
    from safetensors.torch import load_file

    first, second = load_file(files["llamafactory"]), load_file(files["axolotl"])
    assert first.keys() == second.keys()
    worst = {}
    for job in jobs:
        mine = [name for name in first if name.startswith(f"{job}/")]
        assert first[f"{job}/losses"].shape == (6,)
        assert first[f"{job}/means"][0] != first[f"{job}/means"][1]
        assert any(bool(first[name].any()) for name in mine if "/grad." in name)
        worst[job] = {
            "loss": max(float((first[n] - second[n]).abs().max()) for n in mine if "/grad." not in n),
            "gradient": max(float((first[n] - second[n]).abs().max()) for n in mine if "/grad." in n),
        }
    print("largest differences between the hosts:", json.dumps(worst))
    assert all(value <= 1e-5 for by in worst.values() for value in by.values()), worst


LLAMA3 = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>", "<|eom_id|>"]


def llama3_world(folder):
    """Create models with Llama 3's turn tokens: both hosts then end a response with the end of turn alone."""
    from tokenizers import AddedToken

    from tests.support import tiny

    words = tiny.tokenizer()
    words.add_special_tokens({
        "bos_token": LLAMA3[0], "eos_token": LLAMA3[3], "pad_token": LLAMA3[4],
        "additional_special_tokens": [AddedToken(text, special=True) for text in (*LLAMA3[1:3], LLAMA3[5])],
    })  # fmt: skip
    tiny.save_model(folder / "base", seed=0, words=words)
    tiny.save_model(folder / "oracle", seed=1, words=words, noise_over=folder / "base")
    tiny.save_model(folder / "policy", seed=2, words=words)
    tiny.save_pairs(folder / "data")
    axo.save_rows(folder / "pairs.jsonl", axo.messages(tiny.pairs(24)))
    return folder


def test_scores_of_one_host_are_found_by_the_other(tmp_path, train, monkeypatch):
    world = llama3_world(tmp_path / "world")
    scores = str(tmp_path / "scores")
    models = {
        "oracle_model": str(world / "oracle"),
        "oracle_base_model": str(world / "base"),
        "token_scores_dir": scores,
    }
    recipe = {
        "stage": "sepo", "do_train": True, "finetuning_type": "lora", "template": "llama3", "cutoff_len": 256,
        "model_name_or_path": str(world / "policy"), "dataset_dir": str(world / "data"), "dataset": "tiny_pairs",
        "output_dir": str(tmp_path / "theirs"), "use_cpu": True, "report_to": "none", **models,
    }  # fmt: skip
    axo.run_other(["-m", "sepo", "score", axo.write(recipe, tmp_path / "recipe.yaml")], tmp_path)
    made = [path.name for path in Path(scores).iterdir() if path.is_dir() and (path / "manifest.json").is_file()]
    assert len(made) == 1, list(Path(scores).iterdir())

    from sepo.scoring import oracle as scoring

    def scored_again(*args, **kwargs):
        found = [json.loads(path.read_text())["identity"] for path in Path(scores).glob("*/manifest.json")]
        differing = {name for name in found[0] if len({json.dumps(one.get(name)) for one in found}) > 1}
        pytest.fail(f"scored again; differing: {differing}")

    monkeypatch.setattr(scoring, "load_scoring_models", scored_again)
    special = {"bos_token": LLAMA3[0], "eos_token": LLAMA3[3], "pad_token": LLAMA3[4]}
    config = axo.config(
        world, tmp_path / "ours", rl="sepo", sepo=models, chat_template="llama3", sequence_len=256,
        special_tokens=special, max_steps=1, shuffle_merged_datasets=False,
    )  # fmt: skip
    train(config)
    settings = json.loads((tmp_path / "ours" / "sepo_settings.json").read_text())
    assert [Path(path).name for path in settings["token_scores"].values()] == made
