"""Distribution of scores over a whole data set, computed piece by piece in memory independent of its size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from sepo.report.subject import SHARES, Spread
from sepo.score_store.distribution import Moments

Pieces = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]
"""Function that yields one side's scores as (flat float32 scores, tokens of each response), in any pieces. Called once
per pass."""

_BINS = 60
_TAIL = 0.001
"""Share of the tokens beyond the histogram at either end, as one outlier would compress all other scores."""

_SAMPLED = 4096
"""Number of tokens of a piece from which the histogram's ends are estimated."""


@dataclass
class _Side:
    """Results of the first pass."""

    moments: Moments = field(default_factory=Moments)
    sample: list[np.ndarray] = field(default_factory=list)


def spreads(sides: Mapping[str, Pieces], *, highest: Mapping[str, bool]) -> dict[str, Spread]:
    """Compute the distributions of both sides, with the same bins.

    Args:
        sides: the scores, by side. Scores that are not finite are excluded.
        highest: by side, whether the best tokens are those with the highest scores.

    Returns:
        Distributions by side, without sides that have no score.
    """
    first = {side: _first_pass(pieces) for side, pieces in sides.items()}
    first = {side: found for side, found in first.items() if found.moments.count}
    if not first:
        return {}
    edges = _edges([np.concatenate(found.sample) for found in first.values()])
    return {side: _spread(sides[side], found, edges, highest=highest[side]) for side, found in first.items()}


def _finite(pieces: Pieces) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    for scores, lengths in pieces():
        kept = np.isfinite(scores)
        if not kept.all():
            rows = np.repeat(np.arange(len(lengths)), lengths)
            scores, lengths = scores[kept], np.bincount(rows[kept], minlength=len(lengths))
        yield scores.astype(np.float64), lengths


def _first_pass(pieces: Pieces) -> _Side:
    found = _Side()
    for scores, _ in _finite(pieces):
        found.moments.add(count=len(scores), total=float(scores.sum()), squares=float(np.square(scores).sum()))
        found.sample.append(scores[:: max(1, len(scores) // _SAMPLED)])
    return found


def _edges(samples: list[np.ndarray]) -> np.ndarray:
    """Return the edges of bins of equal width; zero is an edge if it is in their range."""
    low = min(float(np.quantile(scores, _TAIL)) for scores in samples)
    high = max(float(np.quantile(scores, 1 - _TAIL)) for scores in samples)
    width = (high - low) / _BINS
    if not width > 1e-6 * max(abs(low), abs(high), 1e-6):
        width = max(abs(low), 1.0) / _BINS
        low, high = low - width * _BINS / 2, high + width * _BINS / 2
    return width * np.arange(math.floor(low / width), math.ceil(high / width) + 1)


def _spread(pieces: Pieces, first: _Side, edges: np.ndarray, *, highest: bool) -> Spread:
    counts = np.zeros(len(edges) - 1, dtype=np.int64)
    sums, responses = np.zeros(len(SHARES)), 0
    for scores, lengths in _finite(pieces):
        counts += np.histogram(np.clip(scores, edges[0], edges[-1]), bins=edges)[0]
        sums += _accumulated(scores, lengths, highest=highest)
        responses += int((lengths > 0).sum())
    moments = first.moments
    return Spread(moments.count, edges, counts, moments.mean, moments.std, sums / responses)


def _accumulated(scores: np.ndarray, lengths: np.ndarray, *, highest: bool) -> np.ndarray:
    """Return the sums over the best shares of each response's tokens, summed over responses, [len(SHARES)]."""
    lengths = lengths[lengths > 0]
    rows = np.repeat(np.arange(len(lengths)), lengths)
    best = scores[np.lexsort((-scores if highest else scores, rows))]
    so_far = np.concatenate([[0.0], np.cumsum(best)])
    starts = np.cumsum(lengths) - lengths
    reached = np.outer(SHARES, lengths)
    whole = np.minimum(np.floor(reached + 1e-9).astype(np.int64), lengths)
    following = np.append(best, 0.0)[starts + np.minimum(whole, lengths - 1)]
    part = np.clip(reached - whole, 0.0, 1.0)
    part[whole == lengths] = 0.0
    sums: np.ndarray = (so_far[starts + whole] - so_far[starts] + part * following).sum(axis=1)
    return sums
