"""Selection of whole units under a token budget: single tokens, contiguous spans, or steps (lines, sentences).

Pure functions of lists, for one *group* at a time: the responses that share a budget, either one response or the two of
a pair. Scores are oriented so that the highest are selected; every response of a group gets at least one unit.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise
from typing import Literal, get_args

Unit = Literal["token", "span", "step"]
UNITS: tuple[str, ...] = get_args(Unit)

Scores = Sequence[Sequence[float]]
"""The scores of a group: one non-empty sequence per response, all finite."""


def ranks(scores: Scores, ties: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return numbers in the same order as the scores, and different where scores are equal.

    Args:
        scores: one sequence per response.
        ties: a number per token, shaped like ``scores``: among equal scores the lowest gets the highest rank.

    Returns:
        Whole numbers, shaped like ``scores``.

    Example:
        >>> ranks([[0.5, 0.5], [0.1]], [[7, 3], [5]])
        [[1.0, 2.0], [0.0]]
    """
    flat = [score for response in scores for score in response]
    order = [tie for response in ties for tie in response]
    ranked = [0.0] * len(flat)
    for rank, index in enumerate(sorted(range(len(flat)), key=lambda index: (flat[index], -order[index], -index))):
        ranked[index] = float(rank)
    ends = [0, *accumulate(len(response) for response in scores)]
    return [ranked[start:end] for start, end in pairwise(ends)]


def pick_tokens(scores: Scores, budget: int) -> list[bool]:
    """Select the best tokens of the group.

    Args:
        scores: one sequence per response.
        budget: number of tokens to select.

    Returns:
        One bool per token, over the concatenated responses: exactly max(``budget``, number of responses) are True, at
        most all. The best token of each response is always selected. Among equal scores the earlier token wins, and
        the earlier response.

    Example:
        >>> pick_tokens([[0.1, 0.9], [0.2, 0.3]], 2)
        [False, True, False, True]
    """
    flat = [score for response in scores for score in response]
    taken = [False] * len(flat)
    for index in _best_of_each(scores):
        taken[index] = True
    left = budget - len(scores)
    for index in _best_first(flat):
        if left <= 0:
            break
        if not taken[index]:
            taken[index] = True
            left -= 1
    return taken


def pick_spans(scores: Scores, budget: int, *, minimum: int) -> list[bool]:
    """Select contiguous runs of at least ``minimum`` tokens, grown around the best tokens.

    A run starts at a token and grows towards the better neighbour until it has ``minimum`` tokens (or is the whole
    response, if that is shorter); it merges with any run that it meets. The best token of each response starts the
    first runs; then every token, best first, starts one as long as a whole run fits into the remaining budget. The
    rest of the budget goes to the best neighbours of the runs, one token at a time, so the count is exact.

    Args:
        scores: one sequence per response.
        budget: number of tokens to select.
        minimum: minimum length of a run, at least 1; 1 selects single tokens.

    Returns:
        One bool per token: exactly max(``budget``, the sum over the responses of min(``minimum``, length)) are True, at
        most all. Among equals the earlier token wins.

    Example:
        >>> pick_spans([[0.0, 0.1, 0.9, 0.2, 0.0, 0.0]], 3, minimum=3)
        [False, True, True, True, False, False]
    """
    runs = _Runs(scores, minimum)
    for index in _best_of_each(scores):
        runs.take(runs.grown(index))
    for index in _best_first(runs.scores):
        if runs.taken[index]:
            continue
        run = runs.grown(index)
        if runs.count + len(run) > budget:
            break
        runs.take(run)
    runs.widen(budget)
    return runs.taken


def pick_steps(
    scores: Scores, steps: Sequence[Sequence[int]], budget: int, *, ties: Sequence[Sequence[int]] | None = None
) -> list[bool]:
    """Select whole steps in order of decreasing mean score until the budget is reached.

    A step is a maximal run of tokens with the same number. The best step of each response comes first, then the best of
    the rest, as long as fewer than ``budget`` tokens are selected. The last one may exceed the budget, by less than its
    length.

    Args:
        scores: one sequence per response.
        steps: the number of each token's step, shaped like ``scores``.
        budget: number of tokens to reach.
        ties: a number per token, shaped like ``scores``; None for the earlier step.

    Returns:
        One bool per token. Among equal means the step whose first token has the lowest number in ``ties`` wins, then
        the earlier one.

    Example:
        >>> pick_steps([[0.0, 0.2, 0.9, 0.1, 0.0]], [[0, 0, 1, 1, 2]], 2)
        [False, False, True, True, False]
    """
    found: list[tuple[float, int, int, int]] = []  # (-mean, tie, first token, tokens): the best sorts first
    best: list[tuple[float, int, int, int]] = []
    offset = 0
    orders = [[0] * len(response) for response in scores] if ties is None else ties
    for response, numbers, order in zip(scores, steps, orders, strict=True):
        own, start = [], 0
        for _, members in groupby(numbers):
            length = sum(1 for _ in members)
            mean = math.fsum(response[start : start + length]) / length
            own.append((-mean, order[start], offset + start, length))
            start += length
        best.append(min(own))
        found += own
        offset += len(response)
    taken = [False] * offset
    count = 0
    for step in [*best, *sorted(set(found) - set(best))]:
        if count >= budget and step not in best:
            break
        _, _, start, length = step
        taken[start : start + length] = [True] * length
        count += length
    return taken


class _Runs:
    """The runs selected so far, over the concatenated tokens of a group; no run crosses a response boundary.

    Args:
        scores: one sequence per response.
        minimum: minimum length of a run.
    """

    def __init__(self, scores: Scores, minimum: int) -> None:
        self.scores = [score for response in scores for score in response]
        self.minimum = minimum
        self.taken = [False] * len(self.scores)
        self.count = 0
        ends = list(accumulate(len(response) for response in scores))
        self._bounds = [
            bounds
            for bounds, response in zip(zip([0, *ends], ends, strict=False), scores, strict=True)
            for _ in response
        ]

    def grown(self, index: int) -> list[int]:
        """Return the tokens to select so that ``index`` is in a run of the minimum length."""
        low, high = self._bounds[index]
        left, right, new = index, index + 1, [index]
        while right - left < min(self.minimum, high - low):
            if left > low and self.taken[left - 1]:
                left -= 1
            elif right < high and self.taken[right]:
                right += 1
            elif left > low and (right == high or self.scores[left - 1] >= self.scores[right]):
                left -= 1
                new.append(left)
            else:
                new.append(right)
                right += 1
        return new

    def take(self, indices: Sequence[int]) -> None:
        """Select tokens that are not selected yet."""
        for index in indices:
            self.taken[index] = True
        self.count += len(indices)

    def widen(self, budget: int) -> None:
        """Add the best neighbour of any run until ``budget`` tokens are selected."""
        edge: list[tuple[float, int]] = []

        def reach(index: int) -> None:
            low, high = self._bounds[index]
            for neighbour in (index - 1, index + 1):
                if low <= neighbour < high and not self.taken[neighbour]:
                    heapq.heappush(edge, (-self.scores[neighbour], neighbour))

        if self.count < budget:
            for index, taken in enumerate(self.taken):
                if taken:
                    reach(index)
        while self.count < budget and edge:
            _, index = heapq.heappop(edge)
            if not self.taken[index]:  # a token between two runs is in the heap twice
                self.take([index])
                reach(index)


def _best_first(scores: Sequence[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda index: (-scores[index], index))


def _best_of_each(scores: Scores) -> list[int]:
    """Return the index of each response's best token in the concatenated responses."""
    best, offset = [], 0
    for response in scores:
        best.append(offset + response.index(max(response)))  # the first of equals
        offset += len(response)
    return best
