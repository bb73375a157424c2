"""Units of a response above the token: error spans and steps, their marks, and their scores.

A unit's score is the mean of its tokens' scores, so that units of different lengths can be compared, as selection by
step compares them (``sepo.selection.units``). All arrays are of one response.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from sepo.credit.evaluate import MarkedResponse
from sepo.credit.measures import Array

LEVELS = ("span", "step")
"""Levels above the token."""

NO_UNIT = -1
"""Number of tokens that are in no unit."""


def span_units(response: MarkedResponse) -> Array:
    """Divide the labelled tokens into error spans and stretches of right tokens of about the same length.

    An error span is a maximal run of marked tokens. Runs of right tokens are cut, from their beginning, into windows of
    as many tokens as the error spans have on average (rounded, at least 1); the last window of a run may be shorter.
    Windows of about the length of an error make their means comparable: the mean over a longer stretch varies less.

    Args:
        response: the marked tokens; tokens that are not labelled end a run and are in no unit.

    Returns:
        int [T], the number of each token's unit, from 0 in their order, or ``NO_UNIT``.

    Example:
        >>> marks = np.array([False, False, False, True, True, False])
        >>> span_units(MarkedResponse(marks, {})).tolist()
        [0, 0, 1, 2, 2, 3]
    """
    labelled, marked = response.labelled, response.marked
    kinds = [None if not known else bool(mark) for known, mark in zip(labelled, marked, strict=True)]
    runs = [(kind, len(list(members))) for kind, members in groupby(kinds)]
    errors = [length for kind, length in runs if kind]
    window = max(1, round(sum(errors) / len(errors))) if errors else 1
    units: list[int] = []
    unit = -1
    for kind, length in runs:
        if kind is None:
            units += [NO_UNIT] * length
            continue
        for place in range(length):
            unit += place == 0 or (not kind and place % window == 0)
            units.append(unit)
    return np.array(units, dtype=np.int64)


def step_units(offsets: Sequence[tuple[int, int]], steps: Sequence[tuple[int, int]]) -> list[int]:
    """Return the number of each token's step, from the characters of the steps.

    A token belongs to the last step that begins before the token's end: what separates steps belongs to the step before
    it, a token in which one step ends and the next begins to the next, and the end of turn to the last.

    Args:
        offsets: the characters (start, end) of each token; end = start for a token without text.
        steps: the characters (start, end) of each step, in order.

    Returns:
        One number per token, from 0; steps without a token have none.

    Example:
        >>> step_units([(0, 3), (3, 4), (4, 6), (6, 6)], [(0, 3), (4, 6)])
        [0, 0, 1, 1]
    """
    starts = np.array([start for start, _ in steps])
    ends = np.array([end if end > start else end + 1 for start, end in offsets], dtype=np.int64)
    return np.maximum(np.searchsorted(starts, ends, side="left") - 1, 0).tolist()


def of_units(response: MarkedResponse, units: Array) -> MarkedResponse:
    """Return the marks of the units: a unit is marked, or of a type, or labelled, if one of its tokens is.

    Args:
        response: the marks of the tokens.
        units: int [T], the unit of each token, or ``NO_UNIT``; numbers may have gaps.
    """
    _, numbers = np.unique(units[units != NO_UNIT], return_inverse=True)

    def any_of(tokens: Array) -> Array:
        return np.bincount(numbers, weights=tokens[units != NO_UNIT]) > 0

    return MarkedResponse(
        any_of(response.marked),
        {kind: any_of(marks) for kind, marks in response.types.items()},
        response.language,
        any_of(response.labelled),
    )


def unit_scores(scores: Array, units: Array) -> Array:
    """Return the mean score of each unit, in their order.

    >>> unit_scores(np.array([1.0, 3.0, 5.0, 9.0]), np.array([0, 0, NO_UNIT, 2])).tolist()
    [2.0, 9.0]

    Args:
        scores: [T], scores of the tokens.
        units: int [T], see ``of_units``.
    """
    _, numbers = np.unique(units[units != NO_UNIT], return_inverse=True)
    kept = np.asarray(scores, dtype=np.float64)[units != NO_UNIT]
    return np.bincount(numbers, weights=kept) / np.bincount(numbers)
