"""The collator of a method: a host's pairwise collator with the columns that selection and weights read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sepo.objectives import Method
from sepo.training.float_columns import SCORES, FloatCollator
from sepo.training.selection_columns import SCORE_COLUMNS, CandidateCollator, SelectionCollator, StepCollator

Collator = Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]
"""Function that collates rows to a batch."""


def selecting_collator(inner: Collator, *, method: Method) -> Collator:
    """Wrap a collator of pairs so that its batches include what the method's selection and token weights need.

    Args:
        inner: the host's collator, as in ``SelectionCollator``.
        method: the resolved method.

    Returns:
        The collator; the same object if the method does not select.
    """
    if method.selector is None:
        return inner
    if not method.needs_scores:
        candidates = CandidateCollator(inner)
        return StepCollator(candidates) if method.needs_steps else candidates
    selecting = SelectionCollator(inner, method=method)
    if not method.weighs_by_scores:
        return selecting
    return FloatCollator(selecting, key=SCORES, columns=SCORE_COLUMNS, what="scores")
