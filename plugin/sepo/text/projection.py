"""Projection of token scores from one tokenizer to another, through the characters that the tokens cover.

Both tokenizations are aligned through the text of the response. A token covers the characters of its text; tokens that
make up one character together (bytes of an emoji) divide it evenly, in their order. A token's score is divided among
the other tokenizer's tokens that overlap it, in proportion to the overlap, and each response's total is preserved: a
score is a difference of log-probabilities, and those of a text's tokens add up to that of the text.

No source: SePO (arXiv 2408.13518) lists the shared tokenizer of oracle and policy as its first limitation.
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
    """Character spans of a response's tokens in its text.

    Args:
        offsets: the characters (start, end) of each token, in token order; end = start for a token at that place that
            covers no character of the text (of a template, a leading-space marker).
        end_of_turn: index of the token that ends the response; tokens after it belong to the template. None if there is
            none.

    Raises:
        SepoError: if an offset ends before it starts, or the end of turn is outside the tokens or before a character.
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
    """Project the scores of one tokenizer's tokens onto another's, in proportion to the characters that they share.

    The score of a source token without characters, or whose characters no target token covers, goes to the target token
    at its place, or else to the nearest. The score of the end of turn goes to the end of turn, and those of the tokens
    after it to the tokens after that; they are dropped if the target has no end of turn. A target token whose
    characters no source token covers keeps 0.

    The map is linear, keeps non-negative scores non-negative, and is exactly the identity if both sides have the same
    spans. Slow twin: ``tests/support/foreign.py``, cell by cell of every character.

    Args:
        scores: one per source token.
        source: the spans of the source tokens.
        target: the spans of the target tokens.

    Returns:
        One score per target token, float64.

    Raises:
        SepoError: if the number of scores is not the number of source tokens, or there is no target token.

    Example:
        >>> source = TokenSpans(((0, 4), (4, 6), (6, 6)), end_of_turn=2)
        >>> target = TokenSpans(((0, 3), (3, 6), (6, 6)), end_of_turn=2)
        >>> project_scores([4.0, 1.0, 0.5], source, target)
        [3.0, 2.0, 0.5]
    """
    if len(scores) != len(source.offsets):
        raise SepoError(
            f"{len(scores)} scores for {len(source.offsets)} tokens, expected one per token: they belong to another "
            "tokenization of the text. Score the row again."
        )
    if source == target:
        return [float(score) for score in scores]
    if not target.offsets:
        raise SepoError("the response has no token to project scores onto, expected at least one: remove the row.")
    result = [0.0] * len(target.offsets)
    _share_text(scores, source, target, result)
    if source.end_of_turn is not None and target.end_of_turn is not None:
        last = len(result) - 1
        for index in range(source.end_of_turn, len(scores)):
            result[min(target.end_of_turn + index - source.end_of_turn, last)] += scores[index]
    return result


def shared_boundaries(source: TokenSpans, target: TokenSpans) -> tuple[int, int]:
    """Count the places inside a text at which a target token ends, and those at which a source token also ends.

    Returns:
        (number of shared boundaries, number of target boundaries).
    """
    ends = {end for _, end in token_intervals(source.offsets) if end}
    inside = {end for _, end in token_intervals(target.offsets) if end}
    inside -= {max(inside, default=0.0)}
    return len(inside & ends), len(inside)


def token_intervals(offsets: Offsets) -> list[tuple[float, float]]:
    """Divide shared characters among their tokens: consecutive intervals without overlap.

    A character that k tokens cover becomes k intervals of the same width, in token order.

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
        # Tokens out of order (no known tokenizer has them): characters of an earlier token are not counted twice.
        left = max(left, reached)
        reached = right = float(max(left, right))
        intervals.append((left, right))
    return intervals


def _share_text(scores: Sequence[float], source: TokenSpans, target: TokenSpans, result: list[float]) -> None:
    """Add the scores of the source tokens before the end of turn to ``result``."""
    given = token_intervals(source.offsets[: source.text_tokens])
    taken = token_intervals(target.offsets[: target.text_tokens])
    wide = [index for index, (start, end) in enumerate(taken) if end > start]
    bare = _by_place((taken[index][0], index) for index in range(len(taken)) if taken[index][1] == taken[index][0])
    used: dict[float, int] = {}
    place = 0
    for score, (start, end), own in zip(scores, given, source.offsets, strict=False):
        if start == end and start in bare:  # one to one, as long as the target has such tokens
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
    """Return the target token nearest to a source token that overlaps none.

    At equal distance it is the later one for a token without characters (a marker belongs to what it opens), and the
    earlier one for a token with characters that the target lacks (a combining mark belongs to its letter).

    Args:
        own: the source token's characters; bytes of one character stay together.
        taken: the target's intervals before its end of turn.
        wide: indices of the intervals with characters.
        place: index in ``wide`` of the first interval that ends after the source token starts.
    """
    start, end = own
    if not wide:  # no token with characters: the last one at or before this place, or the end of turn
        return max(0, bisect_right([left for left, _ in taken], start) - 1)
    if place == len(wide):
        return wide[-1]
    if not place:
        return wide[0]
    to_earlier, to_later = start - taken[wide[place - 1]][1], taken[wide[place]][0] - end
    earlier = to_earlier < to_later or (to_earlier == to_later and end > start)
    return wide[place - 1] if earlier else wide[place]
