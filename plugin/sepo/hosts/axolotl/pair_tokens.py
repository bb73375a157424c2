"""Text pairs in the tokens of Axolotl's trainer, as columns that all hosts share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from datasets import Dataset

from sepo.hosts.axolotl.response_tokens import UserScores
from sepo.scoring.live_columns import mapped
from sepo.selection import SIDES
from sepo.training.selection_columns import IGNORE_INDEX, SCORE_COLUMNS

TOKENS = ("prompt_ids", "chosen_ids", "rejected_ids")
"""Columns of the host's trainer."""


def tokenized_texts(dataset: Dataset, cfg: Any, *, tokenizer: Any, name: str) -> Dataset:
    """Tokenize text pairs as ``tokenized`` does, without the columns of a method, and keep every row.

    Args:
        dataset: rows with ``prompt``, ``chosen`` and ``rejected``.
        cfg: the config.
        tokenizer: the policy's tokenizer.
        name: name of the data set in the host's progress bars.
    """
    made = host_tokens(dataset, cfg, tokenizer=tokenizer, name=name).select_columns(list(TOKENS))
    return in_columns(made, cfg, tokenizer=tokenizer)


def host_tokens(dataset: Dataset, cfg: Any, *, tokenizer: Any, name: str) -> Dataset:
    """Return the rows with the columns ``TOKENS`` that the method of the host's trainer makes."""
    from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer

    # The method reads only the tokenizer of the trainer (see ../PATCHES.md).
    stand_in = SimpleNamespace(_tokenizer=tokenizer, _is_vlm=False)
    args = SimpleNamespace(
        dataset_num_proc=cfg.dataset_num_proc, max_length=int(cfg.sequence_len), truncation_mode="keep_start"
    )
    made: Dataset = AxolotlDPOTrainer._prepare_dataset(stand_in, dataset, tokenizer, args, name)
    return made


def in_columns(
    made: Dataset, cfg: Any, *, tokenizer: Any, given: Sequence[str] = (), scores: UserScores | None = None
) -> Dataset:
    """Return the rows in the columns that all hosts share, without ``TOKENS``."""
    cutoff, bos = int(cfg.sequence_len), tokenizer.bos_token_id

    def columns(rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        return _columns(rows, scores, cutoff=cutoff, bos=bos)

    made = mapped(made, columns, f"rows {cutoff} {bos} {list(given)}")
    return made.remove_columns([*TOKENS, *(column for column in given if column not in SCORE_COLUMNS)])


def _columns(
    rows: Mapping[str, list[Any]], scores: UserScores | None, *, cutoff: int, bos: int | None
) -> dict[str, list[Any]]:
    made: dict[str, list[Any]] = {f"{side}_{what}": [] for side in SIDES for what in ("input_ids", "labels")}
    made |= {column: [] for column in SCORE_COLUMNS} if scores is not None else {}
    for index, prompt in enumerate(rows["prompt_ids"]):
        # The rendered prompt starts with BOS, and the tokenizer prepends it again.
        prompt = prompt[1:] if bos is not None and prompt[:2] == [bos, bos] else prompt
        for side in SIDES:
            response = rows[f"{side}_ids"][index]
            made[f"{side}_input_ids"].append([*prompt, *response][:cutoff])
            made[f"{side}_labels"].append([*[IGNORE_INDEX] * len(prompt), *response][:cutoff])
            if scores is not None:
                numbers = scores.of({name: values[index] for name, values in rows.items()}, side, response)
                left = len(made[f"{side}_labels"][-1]) - len(prompt)
                made[f"{side}_scores"].append(numbers[:left][0 if prompt else 1 :])
    return made
