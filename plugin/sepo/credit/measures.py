"""How well numbers per token find marked tokens: within one response, averaged over responses, with intervals.

Everything here takes arrays of one response, [T], or of many responses, [R]. A *low* number calls a token wrong, as an
oracle's score of a rejected answer does. All measures are within a response, and averaged over responses afterwards:
scores of different responses are never compared, as a selection within responses never compares them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from sepo.errors import SepoError

Array = np.ndarray

_TAIL = 2.5
"""Percent of the bootstrap's means outside the interval, on each side: 95 % lie within."""


def auroc(scores: Array, marked: Array) -> float:
    """The probability that a marked token has a lower score than an unmarked one; equal scores count one half.

    Args:
        scores: [T] any finite numbers; low calls a token wrong.
        marked: [T] bool, at least one True and one False.

    Returns:
        In [0, 1]; 0.5 for random scores, and for equal ones.

    Raises:
        SepoError: all tokens are marked, or none; shapes that differ; a number that is not finite.

    Example:
        >>> auroc(np.array([0.0, 1.0, 2.0]), np.array([True, False, False]))
        1.0
    """
    _check(scores, marked)
    ranks = rankdata(-scores)  # the lowest score has the highest rank; ties share theirs
    count, others = int(marked.sum()), int((~marked).sum())
    wins = ranks[marked].sum() - count * (count + 1) / 2
    return float(wins / (count * others))


def average_precision(scores: Array, marked: Array) -> float:
    """Average precision: the mean over marked tokens of the precision at each one's own score.

    Sum over the distinct scores, from the lowest, of (recall gained there) x (precision of all tokens up to there):
    tokens of one score enter together, so that the order of equal scores does not matter.

    Args:
        scores: as ``auroc``.
        marked: as ``auroc``.

    Returns:
        In (0, 1]; for equal scores the share of marked tokens.

    Raises:
        SepoError: as ``auroc``.
    """
    _check(scores, marked)
    values, place = np.unique(scores, return_inverse=True)  # ascending
    taken = np.cumsum(np.bincount(place, minlength=len(values)))
    gained = np.bincount(place, weights=marked.astype(np.float64), minlength=len(values))
    precision = np.cumsum(gained) / taken
    return float((gained * precision).sum() / marked.sum())


def precision_recall(selected: Array, marked: Array) -> tuple[float, float]:
    """Share of the selected tokens that are marked, and share of the marked tokens that are selected.

    Args:
        selected: [T] bool, at least one True.
        marked: [T] bool, at least one True.

    Raises:
        SepoError: nothing is selected or nothing marked; shapes that differ.
    """
    if selected.shape != marked.shape or not selected.any() or not marked.any():
        raise SepoError(
            f"{int(selected.sum())} of {selected.size} tokens are selected and {int(marked.sum())} of {marked.size} "
            "marked, expected at least one of each in one response."
        )
    found = int((selected & marked).sum())
    return found / int(selected.sum()), found / int(marked.sum())


def _check(scores: Array, marked: Array) -> None:
    if scores.shape != marked.shape or scores.ndim != 1 or marked.dtype != np.bool_:
        raise SepoError(
            f"scores of shape {scores.shape} and marks of shape {marked.shape} and dtype {marked.dtype} are not one "
            "number and one bool for each token of a response."
        )
    if not np.isfinite(scores).all():
        raise SepoError(f"{int((~np.isfinite(scores)).sum())} of {scores.size} scores are not finite numbers.")
    if marked.all() or not marked.any():
        raise SepoError(
            f"{int(marked.sum())} of {marked.size} tokens are marked: there is nothing to tell apart; leave the "
            "response out."
        )


@dataclass(frozen=True)
class Estimate:
    """A mean over responses with its interval.

    Args:
        mean: of the responses.
        low: the lower end of the 95 % interval.
        high: its upper end.
    """

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Return plain JSON values."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


class Bootstrap:
    """Resampled means over a set of responses: the percentile bootstrap, with responses as its units.

    The same resamples serve all measures and all scorers, so that a difference between two scorers is one of pairs:
    responses that are hard for both do not widen its interval.

    Args:
        responses: R, how many there are.
        samples: how many times R of them are drawn with replacement; at least 1.
        seed: of the draws.

    Raises:
        SepoError: there is no response, or no sample is asked for.
    """

    def __init__(self, responses: int, *, samples: int, seed: int) -> None:
        if responses < 1 or samples < 1:
            raise SepoError(
                f"{samples} bootstrap samples of {responses} responses: at least one sample and one response with "
                "marked and unmarked tokens are expected."
            )
        draws = np.random.default_rng(seed).integers(responses, size=(samples, responses))
        offsets = np.arange(samples)[:, None] * responses
        counts = np.bincount((draws + offsets).ravel(), minlength=samples * responses)
        self._shares = counts.reshape(samples, responses) / responses

    def mean(self, values: Array) -> Estimate:
        """The mean of values, [R], and the 2.5 % and 97.5 % quantiles of its resamples."""
        means = self._shares @ np.asarray(values, dtype=np.float64)
        low, high = np.percentile(means, [_TAIL, 100 - _TAIL])
        return Estimate(float(np.mean(values)), float(low), float(high))

    def difference(self, first: Array, second: Array) -> Estimate:
        """The mean of ``first - second``, response by response."""
        return self.mean(np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64))
