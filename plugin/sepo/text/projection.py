"""Scores of one tokenizer's tokens as scores of another's, over the characters that both stand for.

The common ground is the text of a response. A token lies on the characters that it says; tokens that make up one
character together (bytes of an emoji) divide it evenly, in their order. A token's score is shared among the other
tokenizer's tokens that overlap it, in proportion to the overlap, and each response's total is preserved: a score is a
difference of log-probabilities, and those of a text's tokens add up to the text's.

No source: SePO (arXiv 2408.13518) names one tokenizer for oracle and policy as its first limitation.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sepo.errors import SepoError

Offsets = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class TokenSpans:
    """Where the tokens of a response lie in its text.

    Args:
        offsets: the characters (start, end) of each token, in the order of the tokens; end = start for a token without
            characters of the text (a template's, a mark of a leading space), which stands at that place.
        end_of_turn: index of the token that ends the response; whatever follows it belongs to the template. None where
            there is none.

    Raises:
        SepoError: an offset that ends before it starts, or an end of turn outside the tokens or before a character.
    """

    offsets: tuple[tuple[int, int], ...]
    end_of_turn: int | None = None

    def __post_init__(self) -> None:
        for start, end in self.offsets:
            if not 0 <= start <= end:
                raise SepoError(f"a token covers the characters {start} to {end}, expected 0 <= start <= end.")
        last = self.end_of_turn
        if last is not None and not (
            0 <= last < len(self.offsets) and all(start == end for start, end in self.offsets[last:])
        ):
            raise SepoError(
                f"end_of_turn is {last} of {len(self.offsets)} tokens, expected the index of a token after which no "
                "token covers a character of the response."
            )

    @property
    def text_tokens(self) -> int:
        """Number of tokens before the end of turn."""
        return len(self.offsets) if self.end_of_turn is None else self.end_of_turn


def project_scores(scores: Sequence[float], source: TokenSpans, target: TokenSpans) -> list[float]:
    """Share the scores of one tokenizer's tokens among another's, in proportion to the characters that they share.

    A token whose characters no target token has, and a token without characters, gives its score to the target token
    at its place, the nearest if there is none. The end of turn's score goes to the end of turn and what follows it to
    what follows, and is dropped where the target has no end of turn. Characters that no source token has leave a
    target token at 0.

    The map is linear, keeps scores non-negative, and is exactly the identity where both sides have the same spans.
    Slow twin: ``tests/foreign.py``, cell by cell of every character.

    Args:
        scores: one per source token.
        source: their places in the text.
        target: the other tokenizer's.

    Returns:
        One score per target token, float64.

    Raises:
        SepoError: a number of scores that is not the number of source tokens, or no target token at all.

    Example:
        >>> source = TokenSpans(((0, 4), (4, 6), (6, 6)), end_of_turn=2)
        >>> target = TokenSpans(((0, 3), (3, 6), (6, 6)), end_of_turn=2)
        >>> project_scores([4.0, 1.0, 0.5], source, target)
        [3.0, 2.0, 0.5]
    """
    if len(scores) != len(source.offsets):
        raise SepoError(
            f"{len(scores)} scores for {len(source.offsets)} tokens, expected one per token: they belong to another "
            "tokenization of the text."
        )
    if source == target:
        return [float(score) for score in scores]
    if not target.offsets:
        raise SepoError("the response has no token to project scores onto, expected at least one: leave the row out.")
    result = [0.0] * len(target.offsets)
    _share_text(scores, source, target, result)
    if source.end_of_turn is not None and target.end_of_turn is not None:
        last = len(result) - 1
        for index in range(source.end_of_turn, len(scores)):
            result[min(target.end_of_turn + index - source.end_of_turn, last)] += scores[index]
    return result


def shared_boundaries(source: TokenSpans, target: TokenSpans) -> tuple[int, int]:
    """Count the places inside a text at which a target token ends, and those at which a source token ends too.

    Returns:
        (how many coincide, how many there are).
    """
    ends = {end for _, end in token_intervals(source.offsets) if end}
    inside = {end for _, end in token_intervals(target.offsets) if end}
    inside -= {max(inside, default=0.0)}
    return len(inside & ends), len(inside)


def token_intervals(offsets: Offsets) -> list[tuple[float, float]]:
    """The offsets with shared characters divided: intervals that follow one another without overlap.

    A character that k tokens cover is k intervals of the same width, in the order of the tokens.

    >>> token_intervals([(0, 2), (1, 2), (2, 2), (2, 3)])
    [(0.0, 1.5), (1.5, 2.0), (2.0, 2.0), (2.0, 3.0)]
    """
    if all(earlier[1] <= later[0] for earlier, later in pairwise(offsets)):
        return [(float(start), float(end)) for start, end in offsets]  # nothing is shared
    covering = [0] * max((end for _, end in offsets), default=0)
    for start, end in offsets:
        for place in range(start, end):
            covering[place] += 1
    before = [0] * len(covering)
    intervals, reached = [], 0.0
    for start, end in offsets:
        if start == end:
            intervals.append((float(start), float(start)))
            continue
        left = start + before[start] / covering[start]
        for place in range(start, end):
            before[place] += 1
        right = end if before[end - 1] == covering[end - 1] else end - 1 + before[end - 1] / covering[end - 1]
        # Tokens out of order (none that we know of): what an earlier one has is not given twice.
        left = max(left, reached)
        reached = right = float(max(left, right))
        intervals.append((left, right))
    return intervals


def _share_text(scores: Sequence[float], source: TokenSpans, target: TokenSpans, result: list[float]) -> None:
    """Add the scores of the tokens before the end of turn to those of the target's."""
    given = token_intervals(source.offsets[: source.text_tokens])
    taken = token_intervals(target.offsets[: target.text_tokens])
    wide = [index for index, (start, end) in enumerate(taken) if end > start]
    bare = _by_place((taken[index][0], index) for index in range(len(taken)) if taken[index][1] == taken[index][0])
    used: dict[float, int] = {}
    place = 0
    for score, (start, end), own in zip(scores, given, source.offsets, strict=False):
        if start == end and start in bare:  # one to one, as far as the target has such tokens
            rank = used.get(start, 0)
            used[start] = rank + 1
            result[bare[start][min(rank, len(bare[start]) - 1)]] += score
            continue
        while place < len(wide) and taken[wide[place]][1] <= start:
            place += 1
        overlaps: list[tuple[int, float]] = []
        following = place
        while start < end and following < len(wide) and taken[wide[following]][0] < end:
            left, right = taken[wide[following]]
            overlaps.append((wide[following], min(right, end) - max(left, start)))
            following += 1
        whole = sum(width for _, width in overlaps)
        for index, width in overlaps:
            result[index] += score * (width / whole)
        if not overlaps:
            result[_nearest(own, taken, wide, place)] += score


def _by_place(tokens: Iterable[tuple[float, int]]) -> dict[float, list[int]]:
    places: dict[float, list[int]] = {}
    for place, index in tokens:
        places.setdefault(place, []).append(index)
    return places


def _nearest(own: tuple[int, int], taken: Sequence[tuple[float, float]], wide: Sequence[int], place: int) -> int:
    """The target token nearest to a source token that overlaps none.

    Of two as near it is the later for a token without characters (a mark belongs to what it opens), and the earlier for
    one with characters that the target lacks (a combining mark belongs to its letter).

    Args:
        own: the source token's characters; bytes of one character stay together.
        taken: the target's intervals before its end of turn.
        wide: indices of those with characters.
        place: of these, the first that ends after the source token starts.
    """
    start, end = own
    if not wide:  # no text token at all: the one without characters at or before this place, or the end of turn
        return max(0, bisect_right([left for left, _ in taken], start) - 1)
    if place == len(wide):
        return wide[-1]
    if not place:
        return wide[0]
    to_earlier, to_later = start - taken[wide[place - 1]][1], taken[wide[place]][0] - end
    earlier = to_earlier < to_later or (to_earlier == to_later and end > start)
    return wide[place - 1] if earlier else wide[place]
