"""Character spans on tokens: their weights as scores, or which tokens they mark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """Characters ``start`` up to, not including, ``end`` of a response's text, and how much they matter."""

    start: int
    end: int
    weight: float


def span_weights(offsets: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[float]:
    """Give every token the weight of the span that it overlaps.

    A token that overlaps several spans gets the largest of their weights: a word marked inside a marked sentence keeps
    its own weight, and a token on the seam of two spans counts once. A token in no span gets 0.

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
            known = weights[index]
            if end > span.start and end > start:
                weights[index] = span.weight if known is None else max(known, span.weight)
    return [0.0 if weight is None else weight for weight in weights]


def marked_tokens(offsets: Sequence[tuple[int, int]], spans: Iterable[tuple[int, int]]) -> list[bool]:
    """Say of every token whether it overlaps a marked span, by a character at least.

    Args:
        offsets: as ``span_weights``; a token without text of the response is never marked.
        spans: the characters (start, end) of each, in any order, overlapping or not.

    Returns:
        One bool per token.

    Example:
        >>> marked_tokens([(0, 2), (2, 5), (5, 5)], [(1, 2), (5, 7)])
        [True, False, False]
    """
    return [weight > 0 for weight in span_weights(offsets, [Span(start, end, 1.0) for start, end in spans])]
