"""`token_scorer: file`: validation of the user's scores or spans of a row, and conversion to one score per token."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from sepo.errors import SepoError
from sepo.objectives import Method
from sepo.text.projection import TokenSpans
from sepo.text.spans import Span, span_weights
from sepo.training.selection_columns import SCORE_COLUMNS
from sepo.training.trainable_rows import list_arrays

logger = logging.getLogger(__name__)

SPAN_COLUMNS = ("chosen_spans", "rejected_spans")
_HOW = (
    "give the rows chosen_scores and rejected_scores (a number per response token), or chosen_spans and rejected_spans "
    '([{"start": 0, "end": 4, "weight": 1.0}], in characters of the response)'
)


def score_columns(dataset: Dataset, *, name: str) -> list[str]:
    """Return the two columns of a data set that hold its scores or spans.

    Raises:
        SepoError: If it has neither form, or both.
    """
    found = [columns for columns in (SCORE_COLUMNS, SPAN_COLUMNS) if set(columns) <= set(dataset.column_names)]
    if len(found) == 2:
        raise SepoError(
            f"dataset '{name}' has both {', '.join(SCORE_COLUMNS)} and {', '.join(SPAN_COLUMNS)}; token_scorer: file "
            "reads one form; remove the columns of the other."
        )
    if not found:
        raise SepoError(
            f"dataset '{name}' has the columns {', '.join(dataset.column_names)}, which hold no scores for "
            f"token_scorer: file; {_HOW}."
        )
    return list(found[0])


def checked_scores(row: Mapping[str, Any], side: str, *, where: str) -> list[float]:
    """Return the validated scores of one side of a row.

    Args:
        row: a row with ``chosen_scores`` and ``rejected_scores``.
        side: ``chosen`` or ``rejected``.
        where: name of the row in errors.

    Raises:
        SepoError: If they are not a list, or a value is not a finite number.
    """
    scores = row[f"{side}_scores"]
    if not isinstance(scores, list):
        raise SepoError(f"{where}: {side}_scores is {scores!r}, expected a list of numbers; {_HOW}.")
    return [_finite(score, f"{where}: {side}_scores[{position}]") for position, score in enumerate(scores)]


def checked_spans(row: Mapping[str, Any], side: str, *, where: str, characters: int) -> list[Span]:
    """Return the validated spans of one side of a row.

    Args:
        row: a row with ``chosen_spans`` and ``rejected_spans``.
        side: ``chosen`` or ``rejected``.
        where: name of the row in errors.
        characters: length of the response in characters.

    Raises:
        SepoError: If they are not a list of spans, a weight is not finite, or a span lies outside its response.
    """
    spans = row[f"{side}_spans"]
    if not isinstance(spans, list):
        raise SepoError(f"{where}: {side}_spans is {spans!r}, expected a list of spans; {_HOW}.")
    return [_span(span, f"{where}: {side}_spans[{position}]", characters) for position, span in enumerate(spans)]


def scores_of_spans(placed: TokenSpans, spans: Sequence[Span], side: str) -> list[float]:
    """Convert spans to scores of a response's tokens.

    The weight of a span is the importance of its characters on both sides. It is the score in a chosen response, and is
    negated in a rejected one, where low scores are selected.

    Args:
        placed: character spans of the tokens in the response.
        spans: the spans of the response.
        side: ``chosen`` or ``rejected``.
    """
    sign = 1.0 if side == "chosen" else -1.0
    return [sign * weight for weight in span_weights(placed.offsets, spans)]


def warn_of_equal_scores(dataset: Dataset, method: Method, *, name: str) -> None:
    """Log the number of responses whose tokens all have the same score, as without a marked span.

    Args:
        dataset: tokenized rows with the columns ``chosen_scores`` and ``rejected_scores``.
        method: the method that selects by them; if it keeps all tokens, and only weighs them, nothing is logged.
        name: name of the data set in the log.
    """
    assert method.selector is not None  # it reads scores
    if method.selector.keeps_all:
        return
    scores = dataset.select_columns(list(SCORE_COLUMNS)).with_format("arrow")
    found = dict.fromkeys(SCORE_COLUMNS, 0)
    for start in range(0, len(dataset), 1000):
        rows = scores[start : start + 1000]
        for column in SCORE_COLUMNS:
            found[column] += sum(len(row) > 1 and np.ptp(row) == 0 for row in list_arrays(rows[column]))
    for column, count in found.items():
        if count:
            logger.warning(
                "%d of %d %s responses of %s have the same score for every token, so the scores select none of them: "
                "select_rule floor takes the first tokens, quantile all, mean none. Mark a span, or remove the rows.",
                count, len(dataset), column.removesuffix("_scores"), name,
            )  # fmt: skip


def not_counted(where: str, side: str, *, found: int, expected: int) -> SepoError:
    """Return the error for scores that are not one per token."""
    return SepoError(
        f"{where}: {side}_scores has {found} numbers, expected {expected}, one for each token of the response in the "
        "policy's tokenizer and template, its end of turn included."
    )


def not_spelled(where: str, side: str) -> SepoError:
    """Return the error for spans of a response whose tokens do not spell its text."""
    return SepoError(
        f"{where}: the tokens of the {side} response do not spell its text (the template or tokenizer rewrites it), so "
        f"its spans cannot be mapped to tokens; give per-token {side}_scores instead."
    )


def _finite(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SepoError(f"{what} is {value!r}, expected a finite number; correct the data set.")
    return float(value)


def _span(span: Any, what: str, characters: int) -> Span:
    if not isinstance(span, dict) or not {"start", "end", "weight"} <= set(span):
        raise SepoError(f"{what} is {span!r}, expected an object with start, end and weight; {_HOW}.")
    start, end = span["start"], span["end"]
    whole = all(isinstance(place, int) and not isinstance(place, bool) for place in (start, end))
    if not whole or not 0 <= start < end <= characters:
        raise SepoError(
            f"{what} has start {start!r} and end {end!r}, expected 0 <= start < end <= {characters}, the length of the "
            "response in characters; correct the data set."
        )
    return Span(start, end, _finite(span["weight"], f"{what}.weight"))
