"""Interleaved timing: every round runs every contender on the same batch, in rotating order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Timings:
    """Results of the timed rounds.

    Args:
        seconds: seconds per round, by contender.
        losses: loss of the first round's batch, by contender; None for timed work without a loss.
    """

    seconds: dict[str, list[float]]
    losses: dict[str, Any]


@dataclass(frozen=True)
class Speed:
    """Speed of a contender.

    Args:
        pairs_per_second: median over the rounds.
        tokens_per_second: median over the rounds.
        ratios: by baseline, the median over the rounds of the speed-up over it within a round.
    """

    pairs_per_second: float
    tokens_per_second: float
    ratios: dict[str, float]


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """Rotate the names by one position per turn.

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
        steps: by contender, a function that runs one step on the batch of the given index and returns its loss.
        rounds: number of timed rounds; round n uses batch n.
        warm_up: index of the batch of the untimed round.
        clock: function that returns the time in seconds.
        synchronize: function that waits for the device to finish all queued work.
        settle: function that cleans up after a step of a contender, untimed.
        on_step: function that is called after every step.

    Returns:
        Seconds and losses.
    """
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    losses: dict[str, Any] = {}
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
                losses[name] = None if loss is None else float(loss)
            del loss
            settle(name)
            on_step(name)
    return Timings(seconds, losses)


def speeds(
    seconds: Mapping[str, Sequence[float]], *, pairs: Sequence[int], tokens: Sequence[int], baselines: Sequence[str]
) -> dict[str, Speed]:
    """Compute medians over the rounds.

    Args:
        seconds: seconds per round, by contender.
        pairs: number of pairs of each round's batch.
        tokens: number of tokens of each round's batch, without padding.
        baselines: contenders to compare with; those that did not run are omitted.

    Returns:
        Speeds by contender.
    """
    ran = [name for name in baselines if name in seconds]
    return {
        name: Speed(
            pairs_per_second=median(count / took for count, took in zip(pairs, own, strict=True)),
            tokens_per_second=median(count / took for count, took in zip(tokens, own, strict=True)),
            ratios={
                baseline: median(base / time for base, time in zip(seconds[baseline], own, strict=True))
                for baseline in ran
            },
        )
        for name, own in seconds.items()
    }
