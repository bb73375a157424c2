"""The scope ``dataset``: one threshold over the stored scores of a whole data set, and each response's budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sepo.errors import SepoError
from sepo.selection.select import check_ratio, floor_count

Batches = Callable[[], Iterable[Tensor]]
"""Function that yields the scores of a data set as flat float tensors of any length. Called once per pass."""

_HALF = 1 << 16


@dataclass(frozen=True)
class Threshold:
    """The score that a token must reach.

    Attributes:
        value: the threshold, a score that occurs (float32).
        kept_ties: how many of the tokens that score exactly ``value`` are kept.
        ties: how many there are.
        largest: True to select the highest scores, False to select the lowest.
    """

    value: float
    kept_ties: int
    ties: int
    largest: bool

    def counts(self, rows: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """Yield the number of tokens to keep of each response; its best ones are then those that reach the value.

        Ties at the value are spread evenly: up to row r, floor(kept_ties * (ties so far) / ties) of them are kept. The
        counts therefore add up exactly, no part of the data is favoured, and the result depends on the order of the
        data set but not on batches. A response with no token at the threshold keeps one.

        Args:
            rows: chunks of the data set in its order, as (flat scores, tokens per response).

        Yields:
            [responses of the chunk] int64, at least 1 each.
        """
        seen = 0
        for scores, lengths in rows:
            oriented = scores.float() if self.largest else -scores.float()
            value = self.value if self.largest else -self.value
            above = _row_sums(oriented > value, lengths)
            ties = seen + _row_sums(oriented == value, lengths).cumsum(0)
            spread = torch.div(ties * self.kept_ties, self.ties, rounding_mode="floor")
            before = torch.cat([torch.tensor([seen * self.kept_ties // self.ties]), spread[:-1]])
            seen = int(ties[-1]) if len(ties) else seen
            yield (above + spread - before).clamp(min=1)


def dataset_threshold(batches: Batches, *, ratio: float, largest: bool) -> Threshold:
    """Compute the threshold that the share ``ratio`` of all tokens reaches.

    Exactly n = max(1, floor(ratio * n_tokens + 1e-9)) tokens are kept over the data set, before the rule that every
    response keeps at least one adds to them. The value is found in two counting passes (over the upper, then over the
    lower half of the float32 bits), so it is exact, needs no memory for the tokens, and depends neither on their order
    nor on the chunks. There is no source: no paper selects over a whole data set.

    Args:
        batches: the scores; compared in float32.
        ratio: the share of tokens to keep, in (0, 1].
        largest: True keeps the highest scores, False the lowest.

    Returns:
        The threshold.

    Raises:
        SepoError: if there is no token, a score is not finite, or the ratio is out of range.
    """
    check_ratio(ratio)
    upper = _counts(batches, largest, lambda keys: keys >> 16)
    total = int(upper.sum())
    if total == 0:
        raise SepoError("the data set has no scored token, expected at least one: check that responses are not empty.")
    wanted = floor_count(total, ratio)
    high, above = _reached(upper, wanted)
    lower = _counts(batches, largest, lambda keys: (keys & (_HALF - 1))[keys >> 16 == high])
    low, above_within = _reached(lower, wanted - above)
    value = _score_of((high << 16) + low)
    return Threshold(
        value=value if largest else -value + 0.0,
        kept_ties=wanted - above - above_within,
        ties=int(lower[low]),
        largest=largest,
    )


def _counts(batches: Batches, largest: bool, bin_of: Callable[[Tensor], Tensor]) -> Tensor:
    counts = torch.zeros(_HALF, dtype=torch.int64)
    for scores in batches():
        if not bool(torch.isfinite(scores).all()):
            found = float(scores[~torch.isfinite(scores)][0])
            raise SepoError(f"a token score is {found}, expected a finite number: score the data set again.")
        oriented = scores.float() if largest else -scores.float()
        counts += torch.bincount(bin_of(_keys(oriented)), minlength=_HALF)
    return counts


def _keys(scores: Tensor) -> Tensor:
    """Map float32 scores to integers in [0, 2**32) with the same order; negative zero equals zero."""
    bits = (scores + 0.0).contiguous().view(torch.int32).long()
    return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits) + (1 << 31)


def _score_of(key: int) -> float:
    bits = abs(key - (1 << 31))
    return math.copysign(torch.tensor(bits, dtype=torch.int32).view(torch.float32).item(), key - (1 << 31))


def _reached(counts: Tensor, wanted: int) -> tuple[int, int]:
    """Return the bin of the ``wanted``-th token, counted from the highest bin down, and the number of tokens above."""
    from_top = counts.flip(0).cumsum(0)
    index = int(torch.searchsorted(from_top, wanted))
    bin_index = len(counts) - 1 - index
    return bin_index, int(from_top[index] - counts[bin_index])


def _row_sums(flags: Tensor, lengths: Tensor) -> Tensor:
    """Count the set flags in each row of ``lengths`` flags."""
    totals = torch.cat([torch.zeros(1, dtype=torch.int64), flags.long().cumsum(0)])
    ends = lengths.long().cumsum(0)
    return totals[ends] - totals[ends - lengths.long()]
