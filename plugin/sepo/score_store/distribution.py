"""Distribution of the scores of one side of a data set, computed in pieces with memory independent of its size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sepo.selection.select import floor_counts
from sepo.selection.threshold import dataset_threshold

Pieces = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Function that yields the scores of a data set as (flat scores, tokens per response) in pieces of any size. It is
called once per pass."""


@dataclass
class Moments:
    """Count, sum and sum of squares of numbers that arrive in pieces.

    Attributes:
        count: number of numbers.
        total: their sum.
        squares: the sum of their squares.
    """

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, *, count: int, total: float, squares: float) -> None:
        """Add a piece."""
        self.count, self.total, self.squares = self.count + count, self.total + total, self.squares + squares

    @property
    def mean(self) -> float:
        """The mean of all numbers."""
        return self.total / self.count

    @property
    def std(self) -> float:
        """The population standard deviation."""
        return math.sqrt(max(0.0, self.squares / self.count - self.mean * self.mean))


@dataclass(frozen=True)
class Distribution:
    """Distribution of the scores of one side.

    Attributes:
        responses: number of responses.
        tokens: number of tokens.
        mean: mean over all tokens.
        std: population standard deviation.
        low: the 5 % quantile, a score that occurs.
        median: the 50 % quantile.
        high: the 95 % quantile.
        total: sum of all scores.
        kept: sum over the selected share of every response.
    """

    responses: int
    tokens: int
    mean: float
    std: float
    low: float
    median: float
    high: float
    total: float
    kept: float

    @property
    def carried(self) -> float | None:
        """Share of the sum of scores that the selected tokens carry; above 1 if the others' sum has the opposite sign.

        None if the two sums have different signs, so that a share is undefined.
        """
        share = self.kept / self.total if self.total else math.nan
        return share if share > 0 and math.isfinite(share) else None


def distribution(pieces: Pieces, *, ratio: float, largest: bool) -> Distribution:
    """Compute the distribution of the scores of one side.

    Args:
        pieces: the scores.
        ratio: the share of each response's tokens whose sum is ``kept``: max(1, floor(ratio * n)) of n tokens.
        largest: True keeps the highest scores (chosen), False the lowest (rejected).

    Raises:
        SepoError: If there is no token, or a score is not finite.
    """
    moments, responses, kept = Moments(), 0, 0.0
    for scores, lengths in pieces():
        wide = scores.double()
        responses += len(lengths)
        moments.add(count=len(scores), total=float(wide.sum()), squares=float(wide.square().sum()))
        kept += float(wide[kept_in_rows(scores, lengths, ratio=ratio, largest=largest)].sum())

    def quantile(share: float, *, highest: bool) -> float:
        return dataset_threshold(lambda: (scores for scores, _ in pieces()), ratio=share, largest=highest).value

    low, median, high = (
        quantile(0.05, highest=False),
        quantile(0.5, highest=False),
        quantile(0.05, highest=True),
    )
    return Distribution(
        responses, moments.count, moments.mean, moments.std, low, median, high, total=moments.total, kept=kept
    )


def kept_in_rows(scores: Tensor, lengths: Tensor, *, ratio: float, largest: bool) -> Tensor:
    """Return which tokens of each response the rule ``floor`` keeps, vectorized over responses.

    Args:
        scores: the concatenated scores of the responses, [N].
        lengths: number of tokens of each response.
        ratio: the share to keep, in (0, 1].
        largest: True keeps the highest, False the lowest; ties go to the earlier token.

    Returns:
        [N] bool.

    Example:
        >>> kept_in_rows(torch.tensor([1.0, 3.0, 2.0, 5.0]), torch.tensor([3, 1]), ratio=0.34, largest=True)
        tensor([False,  True, False,  True])
    """
    rows = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    by_score = torch.sort(scores, descending=largest, stable=True).indices
    order = by_score[torch.sort(rows[by_score], stable=True).indices]  # by row, then by score, then by position
    starts = lengths.cumsum(0) - lengths
    counts = floor_counts(lengths, ratio)
    rank = torch.arange(len(scores)) - starts[rows]  # rank of the token at that position of `order`
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[order] = rank < counts[rows]
    return kept
