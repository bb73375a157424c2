"""The pair of a prompt: its best response against its worst, by reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

NoPair = Literal["tie", "identical", "unfinished"]
"""Why a prompt has no pair: all rewards are equal or closer than the minimum; fewer than two distinct responses; no
response is finished."""


@dataclass(frozen=True)
class JudgedResponse:
    """A response as pairs are made from it.

    Args:
        text: the response as text.
        finished: whether it ended with a stop token; False if it was truncated.
        reward: its reward, a finite number.
        tokens: number of its tokens, without the stop token.
    """

    text: str
    finished: bool
    reward: float
    tokens: int = 0


@dataclass(frozen=True)
class Pair:
    """Numbers of the chosen and the rejected response of a prompt among its samples."""

    chosen: int
    rejected: int


def candidates(responses: Sequence[JudgedResponse]) -> list[int]:
    """Return the responses that can be in a pair: with text, and without repetitions of the same text.

    Of equal texts the first finished one is kept, or else the first. A blank response has no text to train on.

    Args:
        responses: the samples of one prompt.

    Returns:
        Their numbers, in ascending order.
    """
    kept: dict[str, int] = {}
    for number, response in enumerate(responses):
        if not response.text.strip():
            continue
        first = kept.setdefault(response.text, number)
        if response.finished and not responses[first].finished:
            kept[response.text] = number
    return sorted(kept.values())


def best_and_worst(responses: Sequence[JudgedResponse], *, min_margin: float = 0.0) -> Pair | NoPair:
    """Return the best response against the worst, or why there is no pair.

    The chosen response is the finished one with the highest reward: training would put the end of turn after a
    truncated one, where the policy did not end it. The rejected response is the one with the lowest reward, truncated
    or not. Of equal rewards the earlier sample is taken.

    Args:
        responses: the samples of one prompt.
        min_margin: minimum difference of the two rewards, at least 0; a difference of 0 is a tie in any case.
    """
    usable = candidates(responses)
    if len(usable) < 2:
        return "identical"
    finished = [number for number in usable if responses[number].finished]
    if not finished:
        return "unfinished"
    chosen = max(finished, key=lambda number: (responses[number].reward, -number))
    rejected = min(usable, key=lambda number: (responses[number].reward, number))
    margin = responses[chosen].reward - responses[rejected].reward
    return Pair(chosen, rejected) if margin > 0 and margin >= min_margin else "tie"
