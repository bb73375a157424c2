"""Means and ratios over rows with percentile bootstrap intervals, and shares with Wilson's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from sepo.errors import SepoError

CONFIDENCE = 0.95
"""Confidence level of the intervals."""

_DRAWN_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Args:
        value: the estimate.
        low: the lower end of the interval; None for a bootstrap over a single row, which cannot be resampled.
        high: the upper end of the interval.
    """

    value: float
    low: float | None = None
    high: float | None = None


def share(successes: int, rows: int) -> Estimate:
    """Return a share of independent rows with its interval by Wilson's score test (Wilson 1927).

    Its width is above 0 for a share of 0 or 1 and for a single row, unlike that of the bootstrap.

    >>> share(8, 10)
    Estimate(value=0.8, low=0.49016247153664183, high=0.9433178485456247)

    Args:
        successes: number of rows with the property.
        rows: number of rows, at least 1.
    """
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    value, spread = successes / rows, z * z / rows
    center = (value + spread / 2) / (1 + spread)
    half = z * math.sqrt(value * (1 - value) / rows + spread / (4 * rows)) / (1 + spread)
    return Estimate(value, max(0.0, center - half), min(1.0, center + half))


class Bootstrap:
    """The percentile bootstrap over rows, which are resampled with replacement (Efron 1979).

    All statistics share the same resamples, so that differences are paired: rows that are hard for both sides do not
    widen the interval. A statistic without spread in the sample (an accuracy of 1.0) has an interval of zero width,
    which tells nothing about rows that were not seen.

    Args:
        rows: number of rows, N.
        samples: number of resamples of size N; at least 1.
        seed: seed of the draws.

    Raises:
        SepoError: ``rows`` or ``samples`` is below 1.
    """

    def __init__(self, rows: int, *, samples: int, seed: int) -> None:
        if rows < 1 or samples < 1:
            raise SepoError(f"{samples} bootstrap samples of {rows} rows, expected at least one sample and one row.")
        self._rows, self._samples, self._seed = rows, samples, seed

    def mean(self, values: Any) -> Estimate:
        """Return the mean of values, [N], with its interval."""
        return self.ratio(values, np.ones(self._rows))

    def ratio(self, values: Any, weights: Any) -> Estimate:
        """Return the ratio of two sums over rows, [N] each, with its interval; weights are above 0.

        Values and weights of a row are drawn together.
        """
        numbers, shares = (np.asarray(column, dtype=np.float64) for column in (values, weights))
        resampled = np.concatenate([numbers[rows].sum(1) / shares[rows].sum(1) for rows in self._draws()])
        tail = 50 * (1 - CONFIDENCE)
        low, high = np.percentile(resampled, [tail, 100 - tail])
        return Estimate(float(numbers.sum() / shares.sum()), float(low), float(high))

    def difference(self, first: Any, second: Any) -> Estimate:
        """Return the mean of ``first - second``, paired by row."""
        return self.mean(np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64))

    def _draws(self) -> Iterator[np.ndarray]:
        """Yield row numbers, [samples of a batch, N]; the same ones on every call."""
        generator = np.random.default_rng(self._seed)
        batch = max(1, _DRAWN_AT_ONCE // self._rows)
        for start in range(0, self._samples, batch):
            yield generator.integers(self._rows, size=(min(batch, self._samples - start), self._rows))
