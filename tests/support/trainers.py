"""Rows, models and arguments for runs of ``PreferenceTrainer``."""

import dataclasses
import math

import torch
from transformers import LlamaForCausalLM, TrainingArguments

from sepo.objectives import resolve_method
from sepo.selection import SIDES
from tests.support.steps import make_pairs


def rows_of(count, seed=0):
    rows = []
    for index, pair in enumerate(make_pairs(count, seed)):
        row = {"prompt_ids": [5, 6, 7][: 1 + index % 3]}
        for side in SIDES:
            row[f"{side}_ids"] = [label for label in pair[f"{side}_labels"] if label != -100]
            row[f"{side}_scores"] = pair[f"{side}_scores"]
            row[f"{side}_token_rewards"] = [math.tanh(score) / 2 for score in pair[f"{side}_scores"]]
        rows.append(row)
    return rows


ROWS = rows_of(4)
_FIVE = any(field.name == "train_sampling_strategy" for field in dataclasses.fields(TrainingArguments))
GROUPED = {"train_sampling_strategy": "group_by_length"} if _FIVE else {"group_by_length": True}
"""The argument for batches of rows of similar length; transformers 4 has another name for it."""
LOGGED = 0.0 if _FIVE else 5.1e-5
"""Absolute rounding of a logged loss; transformers 4 logs four decimals."""
SUM = {"dpo": 0.8, "orpo": 0.2, "sft": 0.1}
WEIGHED = resolve_method("dpo", beta=0.5, token_scorer="file", token_weight="scores")
"""The scores of the rows as weights."""
LIVE = resolve_method("selective_dpo", beta=0.5)
"""Live selection, at a beta at which a wrong selection changes the weights noticeably."""


def load(world, name="policy"):
    return LlamaForCausalLM.from_pretrained(world / name, dtype=torch.float64)


def arguments(directory, **overrides):
    values = {
        "output_dir": str(directory), "max_steps": 1, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 3,
        "learning_rate": 1e-2, "lr_scheduler_type": "constant", "optim": "sgd", "max_grad_norm": 0.0,
        "logging_steps": 1, "report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    return TrainingArguments(**{**values, **overrides})


def single_tokens(rows):
    """Return rows with responses of one token, of which rule ``mean`` selects none."""
    names = ("ids", "scores", "token_rewards")
    return [
        {**row, **{f"{side}_{name}": row[f"{side}_{name}"][:1] for side in SIDES for name in names}} for row in rows
    ]


def unweighed(rows):
    """Return rows whose scores are all 0."""
    return [{**row, **{f"{side}_scores": [0.0] * len(row[f"{side}_ids"]) for side in SIDES}} for row in rows]
