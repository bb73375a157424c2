"""Puts the selection made from stored scores beside the host's own padded batch.

The selection travels instead of the scores: an engine may cast every floating-point input of a batch to its own dtype
(DeepSpeed does), and scores rounded to bfloat16 select other tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sepo.errors import SepoError
from sepo.objectives import Method, select

SELECTION = "selection"
"""Batch key: bool, [2B, T], True where the token at that position is optimized."""

STEPS = "steps"
"""Batch key: int64, [2B, T], the number of the step (line, sentence) that the token at that position belongs to."""

IGNORE_INDEX = -100


COUNT_COLUMNS = ("chosen_counts", "rejected_counts")
"""Row columns: how many tokens of the response a data set's threshold keeps."""

STEP_COLUMNS = ("chosen_steps", "rejected_steps")
"""Row columns: the number of each response token's step."""


def scorable_tokens(labels: Tensor) -> Tensor:
    """Where a response token stands that can be scored, bool of the labels' shape [2B, T]."""
    scorable = labels != IGNORE_INDEX
    scorable[:, 0] = False  # a token without a predecessor has no log-probability
    return scorable


def step_numbers(features: Sequence[Mapping[str, Any]], scorable: Tensor) -> Tensor:
    """Put the rows' step numbers where their tokens stand, int64 [2B, T], 0 elsewhere.

    Raises:
        SepoError: a row's number of steps is not its number of scorable response tokens.
    """
    steps = torch.zeros(scorable.shape, dtype=torch.int64)
    rows = [feature[column] for column in STEP_COLUMNS for feature in features]
    for index, row in enumerate(rows):
        count = int(scorable[index].sum())
        if len(row) != count:
            raise SepoError(
                f"{len(row)} step numbers for a response of {count} tokens: they belong to other data; number the "
                "steps again (sepo.training.texts)."
            )
        steps[index, scorable[index]] = torch.as_tensor(row, dtype=torch.int64)
    return steps


class StepCollator:
    """Call the host's pairwise collator, then put the rows' step numbers beside its batch: for live scorers.

    Args:
        inner: the host's collator, as ``SelectionCollator`` takes it.
    """

    def __init__(self, inner: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]) -> None:
        self.inner = inner

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows; see ``step_numbers`` for what is refused."""
        batch = self.inner(features)
        batch[STEPS] = step_numbers(features, scorable_tokens(batch["labels"]))
        return batch


class SelectionCollator:
    """Call the host's pairwise collator, then select each row's tokens by its stored scores.

    >>> from sepo.objectives import resolve_method
    >>> def pad(rows):  # a host's collator: chosen rows first, then rejected ones, padded on the right
    ...     labels = [r["chosen_labels"] for r in rows] + [r["rejected_labels"] for r in rows]
    ...     width = max(map(len, labels))
    ...     return {"labels": torch.tensor([x + [-100] * (width - len(x)) for x in labels])}
    >>> row = {"chosen_labels": [-100, 5, 6], "rejected_labels": [-100, 7],
    ...        "chosen_scores": [0.5, -0.25], "rejected_scores": [1.0]}
    >>> SelectionCollator(pad, method=resolve_method("sepo", chosen_ratio=0.5))([row])["selection"]
    tensor([[False,  True, False],
            [False,  True, False]])

    Args:
        inner: the host's collator; its ``labels`` are [2B, T], the first B rows chosen, -100 where no response
            token is.
        method: the resolved method, one that selects by stored scores.
    """

    def __init__(self, inner: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]], *, method: Method) -> None:
        self.inner = inner
        self.method = method

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows.

        Raises:
            SepoError: a row's number of scores is not its number of scorable response tokens.
        """
        batch = self.inner(features)
        scorable = scorable_tokens(batch["labels"])
        scores = torch.zeros(scorable.shape, dtype=torch.float32)
        rows = [feature["chosen_scores"] for feature in features]
        rows += [feature["rejected_scores"] for feature in features]
        for index, row in enumerate(rows):
            count = int(scorable[index].sum())
            if len(row) != count:
                side = "chosen" if index < len(features) else "rejected"
                raise SepoError(
                    f"{len(row)} scores for a {side} response of {count} tokens: the scores belong to other data. "
                    "Delete the store named in the log, or point token_scores_dir elsewhere."
                )
            scores[index, scorable[index]] = torch.as_tensor(row, dtype=torch.float32)
        pairs = len(features)
        more: dict[str, Tensor] = {}
        if self.method.needs_steps:
            steps = step_numbers(features, scorable)
            more |= {"chosen_steps": steps[:pairs], "rejected_steps": steps[pairs:]}
        if self.method.needs_counts:
            more |= {name: torch.tensor([row[name] for row in features]) for name in COUNT_COLUMNS}
        chosen, rejected = select(
            self.method,
            chosen_mask=scorable[:pairs],
            rejected_mask=scorable[pairs:],
            chosen_scores=scores[:pairs],
            rejected_scores=scores[pairs:],
            **more,
        )
        batch[SELECTION] = torch.cat([chosen, rejected])
        return batch
