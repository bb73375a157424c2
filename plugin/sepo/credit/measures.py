"""Measures of how well token scores find marked tokens: within a response, averaged over responses, with intervals.

Arrays are of one response, [T], or of many responses, [R]. A *low* score marks a token as wrong, as an oracle's score
of a rejected response does. All measures are computed within a response and then averaged over responses: scores of
different responses are never compared, as a selection within responses does not compare them either.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from sepo.errors import SepoError

Array = np.ndarray


def auroc(scores: Array, marked: Array) -> float:
    """Compute the probability that a marked token has a lower score than an unmarked one; ties count one half.

    Args:
        scores: [T] any finite numbers; low scores mark tokens as wrong.
        marked: [T] bool, at least one True and one False.

    Returns:
        A number in [0, 1]; 0.5 for random and for constant scores.

    Raises:
        SepoError: all tokens or none are marked, the shapes differ, or a score is not finite.

    Example:
        >>> auroc(np.array([0.0, 1.0, 2.0]), np.array([True, False, False]))
        1.0
    """
    _check(scores, marked)
    ranks = rankdata(-scores)  # the lowest score has the highest rank; ties share their mean rank
    count, others = int(marked.sum()), int((~marked).sum())
    wins = ranks[marked].sum() - count * (count + 1) / 2
    return float(wins / (count * others))


def average_precision(scores: Array, marked: Array) -> float:
    """Compute average precision: the mean over marked tokens of the precision at each token's score.

    This is the sum over the distinct scores, from the lowest, of (recall gained at this score) x (precision of all
    tokens up to this score): tied tokens enter together, so that their order does not matter.

    Args:
        scores: see ``auroc``.
        marked: see ``auroc``.

    Returns:
        A number in (0, 1]; for constant scores, the share of marked tokens.

    Raises:
        SepoError: see ``auroc``.
    """
    _check(scores, marked)
    values, place = np.unique(scores, return_inverse=True)  # ascending
    taken = np.cumsum(np.bincount(place, minlength=len(values)))
    gained = np.bincount(place, weights=marked.astype(np.float64), minlength=len(values))
    precision = np.cumsum(gained) / taken
    return float((gained * precision).sum() / marked.sum())


def precision_recall(selected: Array, marked: Array) -> tuple[float, float]:
    """Return the share of selected tokens that are marked, and the share of marked tokens that are selected.

    Args:
        selected: [T] bool, at least one True.
        marked: [T] bool, at least one True.

    Raises:
        SepoError: no token is selected or marked, or the shapes differ.
    """
    if selected.shape != marked.shape or not selected.any() or not marked.any():
        raise SepoError(
            f"{int(selected.sum())} of {selected.size} tokens are selected and {int(marked.sum())} of {marked.size} "
            "are marked, expected at least one of each, and the same number of tokens."
        )
    found = int((selected & marked).sum())
    return found / int(selected.sum()), found / int(marked.sum())


def first_error(scores: Array, marked: Array) -> float:
    """Return whether the lowest-ranked unit of a response is its first wrong one.

    Args:
        scores: [U] finite scores of the units (tokens, spans or steps) in their order; low scores mark them as wrong.
        marked: [U] bool, at least one True.

    Returns:
        1 if the first marked unit has the lowest score, 0 if another unit has a lower one, and 1 / n if n units share
        the lowest score and it is among them. Constant scores have 1 / U, and so have random ones in expectation.

    Raises:
        SepoError: no unit is marked, the shapes differ, or a score is not finite.

    Example:
        >>> first_error(np.array([2.0, 0.0, 0.0]), np.array([False, True, True]))
        0.5
    """
    _check(scores, marked, both=False)
    lowest = scores == scores.min()
    return float(lowest[int(marked.argmax())] / lowest.sum())


def first_error_auroc(scores: Array, marked: Array) -> float:
    """Compute the probability that the first wrong unit ranks below a right one before it; ties count one half.

    What follows an error often scores low because of it; this measure does not depend on anything after the error.

    Args:
        scores: see ``first_error``.
        marked: see ``first_error``.

    Returns:
        A number in [0, 1]; 0.5 for random and for constant scores. NaN if the first unit is wrong.

    Raises:
        SepoError: see ``first_error``.

    Example:
        >>> first_error_auroc(np.array([1.0, 3.0, 2.0, 0.0]), np.array([False, False, True, False]))
        0.5
    """
    _check(scores, marked, both=False)
    first = int(marked.argmax())
    if first == 0:
        return float("nan")
    before = scores[:first]
    return float(((before > scores[first]) + 0.5 * (before == scores[first])).mean())


def _check(scores: Array, marked: Array, *, both: bool = True) -> None:
    if scores.shape != marked.shape or scores.ndim != 1 or marked.dtype != np.bool_:
        raise SepoError(
            f"scores have shape {scores.shape}, marks have shape {marked.shape} and dtype {marked.dtype}; expected one "
            "number and one bool for each token of a response."
        )
    if not np.isfinite(scores).all():
        raise SepoError(
            f"{int((~np.isfinite(scores)).sum())} of {scores.size} scores are not finite; expected finite numbers."
        )
    if (both and marked.all()) or not marked.any():
        raise SepoError(
            f"{int(marked.sum())} of {marked.size} tokens are marked, expected "
            f"{'both marked and unmarked tokens' if both else 'at least one'}; exclude the response."
        )
