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

IGNORE_INDEX = -100


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
        labels: Tensor = batch["labels"]
        scorable = labels != IGNORE_INDEX
        scorable[:, 0] = False  # a token without a predecessor has no log-probability
        scores = torch.zeros(labels.shape, dtype=torch.float32)
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
        chosen, rejected = select(
            self.method,
            chosen_mask=scorable[:pairs],
            rejected_mask=scorable[pairs:],
            chosen_scores=scores[:pairs],
            rejected_scores=scores[pairs:],
        )
        batch[SELECTION] = torch.cat([chosen, rejected])
        return batch
