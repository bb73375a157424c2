"""Means over rows with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
"""Confidence level of the intervals."""
RESAMPLES = 2000
"""Number of resamples for each interval."""
_DRAWN_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Estimate:
    """An estimate and its interval.

    Args:
        value: the estimate.
        low: the lower end of the interval; None with fewer than two rows.
        high: the upper end of the interval; None with fewer than two rows.
    """

    value: float
    low: float | None = None
    high: float | None = None


def estimate(values: Any, *, weights: Any = None, seed: int = 0) -> Estimate | None:
    """Compute the mean of rows, or the ratio of two sums over them, with a percentile bootstrap interval (Efron 1979).

    Rows are drawn with replacement, values and weights together. A statistic without spread in the sample (an accuracy
    of 1.0) has an interval of zero width, which is not informative about unseen rows.

    >>> estimate([1.0, 0.0, 1.0, 1.0]).value, estimate([6.0, 2.0], weights=[2, 2]).value, estimate([])
    (0.75, 2.0, None)

    Args:
        values: one number per row, [N].
        weights: positive numbers, [N], whose sum divides the sum of ``values``; None for ones, which gives the mean.
        seed: seed of the draws.

    Returns:
        The estimate; None without rows.
    """
    numbers = np.asarray(values, dtype=np.float64)
    shares = np.ones_like(numbers) if weights is None else np.asarray(weights, dtype=np.float64)
    if not len(numbers):
        return None
    value = float(numbers.sum() / shares.sum())
    if len(numbers) == 1:
        return Estimate(value)
    from scipy.stats import bootstrap

    found = bootstrap(
        (numbers, shares), lambda x, w, axis: x.sum(axis) / w.sum(axis), paired=True, vectorized=True,
        confidence_level=CONFIDENCE, n_resamples=RESAMPLES, batch=max(1, _DRAWN_AT_ONCE // len(numbers)),
        method="percentile", rng=np.random.default_rng(seed),
    )  # fmt: skip
    return Estimate(value, float(found.confidence_interval.low), float(found.confidence_interval.high))
