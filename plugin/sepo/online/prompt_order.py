"""The order of prompts in TRL's GRPO trainer, as a function of seed and epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import Sampler


class PromptOrder(Sampler[int]):
    """TRL's sampler of prompts, shuffled with a seed of its own in each epoch.

    TRL's draws every epoch from one generator, which a run that resumes creates anew: its first epoch, whichever that
    is, has the order of epoch 0. In epoch 0 both orders are the same.

    Args:
        sampler: TRL's ``RepeatSampler``.
        seed: seed of epoch 0.
        epoch: returns the epoch in which the trainer is.
    """

    def __init__(self, sampler: Any, *, seed: int, epoch: Callable[[], float | None]) -> None:
        self._sampler, self._seed, self._epoch = sampler, seed, epoch

    def __iter__(self) -> Iterator[int]:
        generator = getattr(self._sampler, "generator", None)  # None if prompts are not shuffled
        if generator is not None:
            generator.manual_seed(self._seed + int((self._epoch() or 0.0) + _ROUNDING))
        return iter(self._sampler)

    def __len__(self) -> int:
        return len(self._sampler)


_ROUNDING = 1e-6
"""The trainer's epoch is a quotient, such as 2.9999999 at the end of the third."""
