"""Means over seeds with 95 % intervals by Student's t, and paired differences."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from scipy.stats import t

from sepo.intervals import CONFIDENCE


def over_seeds(values: Sequence[float]) -> dict[str, float | None]:
    """Return mean, lower and upper end of the interval of the mean over seeds; no ends for a single seed.

    >>> over_seeds([1.0, 2.0, 3.0])
    {'mean': 2.0, 'low': -0.4841, 'high': 4.4841}
    """
    mean = fmean(values)
    if len(values) < 2:
        return {"mean": round(mean, 4), "low": None, "high": None}
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return {"mean": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4)}


def difference(first: Sequence[float], second: Sequence[float]) -> dict[str, float | None]:
    """Return the mean of ``first - second``, paired by seed, with its interval."""
    return over_seeds([a - b for a, b in zip(first, second, strict=True)])
