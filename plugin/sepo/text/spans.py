"""Character spans mapped to tokens, as weights or as a mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """Characters ``start`` to ``end`` (exclusive) of a response's text, and their weight."""

    start: int
    end: int
    weight: float


def span_weights(offsets: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[float]:
    """Return for every token the weight of the span that it overlaps.

    A token that overlaps several spans gets the largest of their weights, so a word marked inside a marked sentence
    keeps its larger weight and a token across two adjacent spans counts once. A token in no span gets 0.

    Args:
        offsets: the characters (start, end) of each token, in order of their starts; end = start for a token without
            text of the response (an end-of-turn token).
        spans: in any order, overlapping or not.

    Returns:
        One weight per token.

    Example:
        >>> span_weights([(0, 2), (2, 5), (5, 5)], [Span(1, 3, 0.5), Span(2, 3, 2.0)])
        [0.5, 2.0, 0.0]
    """
    weights: list[float | None] = [None] * len(offsets)
    ordered, first = sorted(spans), 0
    for span in ordered:
        # Tokens that end before this span starts end before every later one too.
        while first < len(offsets) and offsets[first][1] <= span.start:
            first += 1
        for index in range(first, len(offsets)):
            start, end = offsets[index]
            if start >= span.end:
                break
            weight = weights[index]
            if end > span.start and end > start:
                weights[index] = span.weight if weight is None else max(weight, span.weight)
    return [0.0 if weight is None else weight for weight in weights]


def marked_tokens(offsets: Sequence[tuple[int, int]], spans: Iterable[tuple[int, int]]) -> list[bool]:
    """Return for every token whether it overlaps a marked span by at least one character.

    Args:
        offsets: as in ``span_weights``; a token without text of the response is never marked.
        spans: the characters (start, end) of each span, in any order, overlapping or not.

    Returns:
        One bool per token.

    Example:
        >>> marked_tokens([(0, 2), (2, 5), (5, 5)], [(1, 2), (5, 7)])
        [True, False, False]
    """
    return [weight > 0 for weight in span_weights(offsets, [Span(start, end, 1.0) for start, end in spans])]
