"""Shares of right answers over seeds and questions, with intervals for other seeds and other questions."""

from __future__ import annotations

from typing import Any

import numpy as np

from sepo.intervals import CONFIDENCE, Estimate

RESAMPLES = 10_000


def crossed(values: Any, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Estimate the mean of a table with its percentile interval, with rows and columns both resampled.

    The interval is for other training seeds and other questions: each resample draws seeds and, independently,
    questions with replacement (the pigeonhole bootstrap of Owen 2007, which is conservative).
    `sepo.intervals.Bootstrap` resamples rows alone. With few seeds, few different resamples of them exist.

    Args:
        values: a number for each seed and question, [S, Q]; differences for paired comparisons.
        resamples: number of resamples.
        seed: seed of the draws.
    """
    table = np.asarray(values, dtype=np.float64)
    seeds, questions = table.shape
    generator = np.random.default_rng(seed)
    weights = [generator.multinomial(count, np.full(count, 1 / count), size=resamples) / count
               for count in (seeds, questions)]  # fmt: skip
    means = np.einsum("rs,sq,rq->r", *(weights[0], table, weights[1]), optimize=True)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(means, [tail, 100 - tail])
    return Estimate(float(table.mean()), float(low), float(high))
