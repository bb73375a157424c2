"""Interleaved timing: every round runs every contender on the same batch, in an order that is rotated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Timings:
    """What was timed.

    Args:
        seconds: by contender, one number per round.
        losses: by contender, of the first round's batch.
    """

    seconds: dict[str, list[float]]
    losses: dict[str, float]


@dataclass(frozen=True)
class Speed:
    """A contender's speed.

    Args:
        pairs_per_second: median over the rounds.
        tokens_per_second: median over the rounds.
        ratios: by baseline, the median over the rounds of how many times as fast it was in the same round.
    """

    pairs_per_second: float
    tokens_per_second: float
    ratios: dict[str, float]


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """The names in their order, beginning with another one every turn.

    >>> rotated(["a", "b", "c"], 1)
    ['b', 'c', 'a']
    """
    start = turn % len(names)
    return [*names[start:], *names[:start]]


def timed_rounds(
    steps: Mapping[str, Callable[[int], Any]],
    *,
    rounds: int,
    warm_up: int,
    clock: Callable[[], float],
    synchronize: Callable[[], None],
    settle: Callable[[str], None],
    on_step: Callable[[str], None],
) -> Timings:
    """Time steps, interleaved, after one untimed round.

    Args:
        steps: by contender: runs one step on the batch of that number, and returns its loss.
        rounds: how many are timed; round n takes batch n.
        warm_up: the batch of the untimed round.
        clock: seconds.
        synchronize: waits until the device has done what was asked of it.
        settle: cleans up after a contender's step, untimed.
        on_step: called after every step.

    Returns:
        Seconds and losses.
    """
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    losses: dict[str, float] = {}
    for turn, batch in enumerate([warm_up, *range(rounds)]):
        for name in rotated(names, turn):
            synchronize()
            start = clock()
            loss = steps[name](batch)
            synchronize()
            took = clock() - start
            if turn > 0:
                seconds[name].append(took)
            if turn == 1:
                losses[name] = float(loss)
            del loss
            settle(name)
            on_step(name)
    return Timings(seconds, losses)


def speeds(
    seconds: Mapping[str, Sequence[float]], *, pairs: Sequence[int], tokens: Sequence[int], baselines: Sequence[str]
) -> dict[str, Speed]:
    """Medians over the rounds.

    Args:
        seconds: by contender, one number per round.
        pairs: pairs of each round's batch.
        tokens: tokens of each round's batch, without padding.
        baselines: contenders to compare with; one that did not run is left out.

    Returns:
        Speeds by contender.
    """
    ran = [name for name in baselines if name in seconds]
    return {
        name: Speed(
            pairs_per_second=median(count / took for count, took in zip(pairs, own, strict=True)),
            tokens_per_second=median(count / took for count, took in zip(tokens, own, strict=True)),
            ratios={
                baseline: median(theirs / ours for theirs, ours in zip(seconds[baseline], own, strict=True))
                for baseline in ran
            },
        )
        for name, own in seconds.items()
    }
