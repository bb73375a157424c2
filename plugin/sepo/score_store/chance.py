"""Comparison of token scores with noise: whether the selected tokens of a pair's two responses differ more than chance.

Shuffling scores within a response changes neither its highest nor its lowest ones, so the null hypothesis is over
pairs: the scores of both responses at one position are exchanged at random. Scores that depend on the position or the
length alone are unchanged by that and count as noise, whatever the lengths of chosen and rejected responses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from sepo.intervals import Bootstrap, Estimate, share
from sepo.score_store.summary import SHARE

Array = np.ndarray

MOST_PAIRS = 2000
"""Number of pairs that are read, evenly spaced over a data set."""
FEWEST_PAIRS = 20
"""Number of pairs below which no scores are reported as noise: the interval is not reliable."""
NORMAL_CARRIED = math.exp(-(NormalDist().inv_cdf(1 - SHARE / 2) ** 2) / 2)
"""Share of the sum of absolute values that the largest ``SHARE`` of normal numbers carry, whatever their variance."""
_EXCHANGES = 16
_RESAMPLES = 1000
_SEED = 0


@dataclass(frozen=True)
class Chance:
    """Scores of a data set against chance.

    The separation of a pair is the mean of the highest 30 % of the chosen response's scores minus the mean of the
    lowest 30 % of the rejected one's, as in SePO's loss (arXiv 2408.13518, Eq. 26). It is above 0 for noise, too.

    Args:
        pairs: number of pairs that were compared.
        separation: mean separation, in the unit of the scores.
        exchanged: mean separation after exchanges at random, position by position.
        excess: mean of separation minus exchanged separation, with its interval over pairs; 0 is expected for noise.
        accuracy: share of the pairs whose chosen response has the higher mean score, with its interval.
        carried: share of the sum of absolute scores in the 30 % of each response's tokens with the largest ones.
    """

    pairs: int
    separation: float
    exchanged: float
    excess: Estimate
    accuracy: Estimate
    carried: float

    @property
    def is_noise(self) -> bool:
        """Whether the scores cannot be told from noise: the interval of the excess is not above 0."""
        return self.pairs >= FEWEST_PAIRS and self.excess.low is not None and self.excess.low <= 0

    def text(self) -> str:
        """Return the numbers in one line."""
        interval = f"{_signed(self.excess.low)} to {_signed(self.excess.high)}"
        times = f", {self.separation / self.exchanged:.3g} times" if self.exchanged > 0 else ""
        return (
            f"the selected {SHARE:.0%} of chosen and rejected tokens differ by {self.separation:.3g}, with scores "
            f"exchanged at random by {self.exchanged:.3g} (excess {_signed(self.excess.value)}, {interval}{times}); "
            f"chosen responses score higher in {_percent(self.accuracy.value)} of {self.pairs:,} pairs "
            f"({_percent(self.accuracy.low)} to {_percent(self.accuracy.high)}); {SHARE:.0%} of the tokens carry "
            f"{self.carried:.0%} of the absolute scores (of normal noise {NORMAL_CARRIED:.0%})"
        )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Chance:
        """Return the comparison of the values that ``as_dict`` returned.

        Raises:
            KeyError, TypeError or ValueError: The values are others.
        """
        estimates = {
            name: Estimate(float(values[name]["mean"]), float(values[name]["low"]), float(values[name]["high"]))
            for name in ("excess", "accuracy")
        }
        numbers = {name: float(values[name]) for name in ("separation", "exchanged", "carried")}
        return cls(int(values["pairs"]), **numbers, **estimates)  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "pairs": self.pairs,
            "separation": self.separation,
            "exchanged": self.exchanged,
            "excess": _plain(self.excess),
            "accuracy": _plain(self.accuracy),
            "carried": self.carried,
            "noise": self.is_noise,
        }


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _plain(estimate: Estimate) -> dict[str, float | None]:
    return {"mean": estimate.value, "low": estimate.low, "high": estimate.high}


def sampled_rows(rows: int) -> Sequence[int]:
    """Return the numbers of the rows that are read: all, or ``MOST_PAIRS`` evenly spaced ones."""
    return [index * rows // MOST_PAIRS for index in range(MOST_PAIRS)] if rows > MOST_PAIRS else range(rows)


def against_chance(chosen: Sequence[Array], rejected: Sequence[Array]) -> Chance | None:
    """Compare the scores of pairs with noise. The order of the pairs does not change the result.

    Args:
        chosen: the scores of the chosen responses, an array [T] each; high scores are selected.
        rejected: those of the rejected responses, on the same scale; low scores are selected.

    Returns:
        The comparison; None if no pair has two responses with tokens, or the sign of the scores depends on the response
        alone (marked spans: none below 0 in chosen and none above 0 in rejected ones), so that any would pass.
    """
    rows = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(chosen, rejected, strict=True)]
    rows = [(a, b) for a, b in rows if len(a) and len(b)]
    if not rows or all(float(a.min()) >= 0 >= float(b.max()) for a, b in rows):
        return None
    rows.sort(key=lambda row: (row[0].tobytes(), row[1].tobytes()))
    draws = np.random.default_rng(_SEED)
    separations = np.array([_separation(a[None], b[None])[0] for a, b in rows])
    exchanged = np.array([_separation(*_exchanged(a, b, draws)).mean() for a, b in rows])
    higher = sum(float(a.mean()) > float(b.mean()) for a, b in rows)
    responses = [np.abs(response) for row in rows for response in row]
    total = math.fsum(float(response.sum()) for response in responses)
    carried = math.fsum(float(_extreme(response[None], highest=True).sum()) for response in responses)
    return Chance(
        len(rows),
        float(separations.mean()),
        float(exchanged.mean()),
        Bootstrap(len(rows), samples=_RESAMPLES, seed=_SEED).mean(separations - exchanged),
        share(higher, len(rows)),
        carried / total if total else 0.0,
    )


def _extreme(scores: Array, *, highest: bool) -> Array:
    """Return the highest or lowest ``SHARE`` of each row, [N, T] to [N, max(1, floor(SHARE * T))]."""
    length = scores.shape[1]
    kept = max(1, int(SHARE * length + 1e-9))
    if highest:
        return np.partition(scores, length - kept, axis=1)[:, length - kept :]
    return np.partition(scores, kept - 1, axis=1)[:, :kept]


def _separation(chosen: Array, rejected: Array) -> Array:
    """Return the separation of pairs with scores [N, T] and [N, U], [N]."""
    return _extreme(chosen, highest=True).mean(1) - _extreme(rejected, highest=False).mean(1)


def _exchanged(chosen: Array, rejected: Array, draws: np.random.Generator) -> tuple[Array, Array]:
    """Return a pair's scores with those at the same position exchanged at random, [_EXCHANGES, T] and [_EXCHANGES, U].

    Every second exchange is the complement of the one before it, so that a difference of both responses at a position
    cancels in the mean.
    """
    shared = min(len(chosen), len(rejected))
    half = draws.random((_EXCHANGES // 2, shared)) < 0.5
    swapped = np.concatenate([half, ~half])
    both = [np.tile(side, (_EXCHANGES, 1)) for side in (chosen, rejected)]
    for made, other in zip(both, (rejected, chosen), strict=True):
        made[:, :shared] = np.where(swapped, other[:shared], made[:, :shared])
    return both[0], both[1]
