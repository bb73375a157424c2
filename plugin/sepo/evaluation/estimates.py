"""Estimates over the rows of an evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np

from sepo.intervals import Bootstrap, Estimate

RESAMPLES = 2000
"""Number of resamples for each interval."""


def estimate(values: Any, *, weights: Any = None, seed: int = 0) -> Estimate | None:
    """Estimate the mean of rows, or the ratio of two sums over them, with its bootstrap interval.

    >>> estimate([1.0, 0.0, 1.0, 1.0]).value, estimate([6.0, 2.0], weights=[2, 2]).value, estimate([])
    (0.75, 2.0, None)

    Args:
        values: a number per row, [N].
        weights: the divisor of each row, [N] and above 0; None: one each, which gives the mean.
        seed: seed of the draws.

    Returns:
        The estimate; None without rows.
    """
    numbers = np.asarray(values, dtype=np.float64)
    shares = np.ones_like(numbers) if weights is None else np.asarray(weights, dtype=np.float64)
    if not len(numbers):
        return None
    if len(numbers) == 1:
        return Estimate(float(numbers[0] / shares[0]))
    return Bootstrap(len(numbers), samples=RESAMPLES, seed=seed).ratio(numbers, shares)
