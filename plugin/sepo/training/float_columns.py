"""Collators that add one number per response token to the host's padded batch: token rewards, reference
log-probabilities, token scores.

The float32 numbers are passed as their bit patterns in int32, since an engine may cast every floating-point input of a
batch to its own dtype (DeepSpeed does), and bfloat16 has two or three digits. The step thus gets the exact numbers of
the store under every engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sepo.errors import SepoError
from sepo.training.selection_columns import STORE_ADVICE, at_tokens, scorable_tokens

REF_LOGPS = "ref_logps"
"""Batch key: int32, [2B, T], the bits of the float32 reference log-probability of the token at that position."""

REF_COLUMNS = ("chosen_ref_logps", "rejected_ref_logps")
"""Row columns: the reference's log-probability, in nats, of each response token that can be scored."""


SCORES = "scores"
"""Batch key: int32, [2B, T], the bits of the float32 token score of the token at that position; 0 if there is none. For
methods that weigh tokens by stored scores."""


class FloatCollator:
    """Collator that adds the rows' numbers to the batch of a pairwise collator, at the positions of their labels.

    Args:
        inner: the host's collator, or one of this package around it; its ``labels`` are [2B, T], the first B rows
            chosen, -100 except at response tokens.
        key: batch key of the numbers.
        columns: row columns with the numbers of the chosen and of the rejected responses.
        what: name of the numbers in error messages.
    """

    def __init__(
        self,
        inner: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]],
        *,
        key: str,
        columns: tuple[str, str],
        what: str,
    ) -> None:
        self.inner, self.key, self.columns, self.what = inner, key, columns, what

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows.

        Raises:
            SepoError: if a row's number of values is not its number of scorable response tokens, or ``checked`` raises.
        """
        batch = self.inner(features)
        rows = [feature[column] for column in self.columns for feature in features]
        scorable = scorable_tokens(batch)
        values = at_tokens(rows, scorable, dtype=torch.float32, what=self.what, advice=STORE_ADVICE)
        batch[self.key] = self.checked(values, scorable).view(torch.int32)
        return batch

    def checked(self, values: Tensor, scorable: Tensor) -> Tensor:
        """Return the numbers to add to the batch: here, those of the rows, unchanged.

        Args:
            values: [2B, T] float32, 0 except at response tokens.
            scorable: [2B, T] bool, True at response tokens.

        Returns:
            [2B, T] float32.
        """
        return values


class ReferenceCollator(FloatCollator):
    """Collator that adds stored reference log-probabilities to the batch, at the positions of their labels.

    >>> def pad(rows):  # a host's collator: chosen rows first, then rejected ones, padded on the right
    ...     labels = [r["chosen_labels"] for r in rows] + [r["rejected_labels"] for r in rows]
    ...     width = max(map(len, labels))
    ...     return {"labels": torch.tensor([x + [-100] * (width - len(x)) for x in labels])}
    >>> row = {"chosen_labels": [-100, 5, 6], "rejected_labels": [-100, 7],
    ...        "chosen_ref_logps": [-0.5, -2.25], "rejected_ref_logps": [-1.0]}
    >>> batch_floats(ReferenceCollator(pad)([row]), REF_LOGPS, missing="collate with ReferenceCollator")
    tensor([[ 0.0000, -0.5000, -2.2500],
            [ 0.0000, -1.0000,  0.0000]])

    Args:
        inner: as in ``FloatCollator``.
    """

    def __init__(self, inner: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]) -> None:
        super().__init__(inner, key=REF_LOGPS, columns=REF_COLUMNS, what="reference log-probabilities")


def batch_floats(batch: Mapping[str, Any], key: str, *, missing: str) -> Tensor:
    """Return the numbers of a batch under ``key``, [2B, T] float32, 0 except at response tokens.

    Args:
        batch: from a ``FloatCollator``.
        key: batch key of the numbers.
        missing: error message if there are none.

    Raises:
        SepoError: if the batch has no such key.
    """
    if key not in batch:
        raise SepoError(missing)
    bits: Tensor = batch[key]
    return bits.view(torch.float32)
