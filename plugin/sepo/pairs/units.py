"""Work units: the batches in which responses are sampled and judged, a function of the data alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sepo.forward.sequences import length_batches


@dataclass(frozen=True)
class WorkUnit:
    """One batch of samples; it is complete, or it is computed again as the same batch.

    Args:
        index: its number.
        samples: index of the prompt and number of the sample, for each row of the batch.
    """

    index: int
    samples: tuple[tuple[int, int], ...]


def work_units(lengths: Sequence[int], *, samples: int, max_new_tokens: int, batch_tokens: int) -> tuple[WorkUnit, ...]:
    """Divide all samples into batches of prompts of similar length, the longest first.

    Neither processes nor interruptions change the batches, so that the rounding of a sample, which depends on the
    padding of its batch, does not depend on these either.

    Args:
        lengths: tokens of each prompt.
        samples: number of samples for each prompt.
        max_new_tokens: maximum tokens of a response.
        batch_tokens: tokens per batch, padding and new tokens included; a longer prompt has its own batch.

    Example:
        >>> [unit.samples for unit in work_units([2, 5], samples=2, max_new_tokens=1, batch_tokens=12)]
        [((1, 0), (1, 1)), ((0, 0), (0, 1))]
    """
    items = [(prompt, number) for prompt in range(len(lengths)) for number in range(samples)]
    batches = length_batches([lengths[prompt] + max_new_tokens for prompt, _ in items], batch_tokens)
    return tuple(WorkUnit(index, tuple(items[item] for item in batch)) for index, batch in enumerate(batches))
