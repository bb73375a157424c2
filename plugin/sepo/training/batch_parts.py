"""Splitting a device batch into parts under a token budget, each with its own backward pass, to save memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sepo.forward.shared_prompt import PairLayout, token_groups
from sepo.training.metrics import Metric, added

PartLoss = tuple[Tensor, dict[str, Metric]]
"""Mean loss over the pairs of a part, and its metrics."""


def alone(parts: int) -> int:
    """Return the number of parts unchanged: the agreement of a single process."""
    return parts


@dataclass(frozen=True)
class Parts:
    """How a device batch is split.

    Args:
        batch_tokens: maximum number of tokens of a part; a pair with more is a part of its own.
        backward: runs the given forward pass and the backward pass of its result, without synchronizing gradients with
            other processes, and returns the result detached. None keeps all parts for one backward pass by the caller,
            which saves no memory.
        agree: takes this process's number of parts and returns the maximum over all processes. Engines that gather
            weights in each forward pass wait for every process.
    """

    batch_tokens: int
    backward: Callable[[Callable[[], Tensor]], Tensor] | None = None
    agree: Callable[[int], int] = alone

    def loss(
        self,
        batch: Mapping[str, Any],
        layout: PairLayout | None,
        compute: Callable[[Mapping[str, Any]], PartLoss],
    ) -> PartLoss:
        """Compute a batch part by part.

        Args:
            batch: tensors of [2B, ...], the first B rows chosen.
            layout: layout of its pairs in a row without padding, or None if they are padded.
            compute: computes the loss of a part.

        Returns:
            The result of ``compute`` for the whole batch. Its backward pass is that of the last part; those of the
            other parts have already run.
        """
        pairs = len(batch["labels"]) // 2
        if layout is not None:
            groups = token_groups([span.end - span.start for span in layout.spans], self.batch_tokens)
        else:
            rows = _widths(batch["attention_mask"])
            lengths = torch.maximum(rows[:pairs], rows[pairs:]).tolist()
            groups = token_groups([2 * length for length in lengths], self.batch_tokens, padded=True)
        count = self.agree(len(groups))
        groups = _at_least(groups, count)
        idle = count - len(groups)  # parts that only other processes have: run here with weight 0
        done: list[Tensor] = []
        metrics: dict[str, Metric] = {}
        for number, group in enumerate([groups[0]] * idle + groups):
            weight = len(group) / pairs if number >= idle else 0.0

            def weighed(group: list[int] = group, weight: float = weight, counted: bool = number >= idle) -> Tensor:
                nonlocal metrics
                loss, values = compute(part_of(batch, group))
                if counted:
                    metrics = added(metrics, values) if metrics else values
                return loss * weight

            last = number == idle + len(groups) - 1
            if last or self.backward is None or not torch.is_grad_enabled():
                done.append(weighed())
            else:
                done.append(self.backward(weighed))
        return torch.stack(done).sum(), metrics


def _at_least(groups: Sequence[list[int]], count: int) -> list[list[int]]:
    """Halve the largest group until there are ``count`` of them or each is one pair."""
    split = [list(group) for group in groups]
    while len(split) < count and max(map(len, split)) > 1:
        largest = max(range(len(split)), key=lambda index: len(split[index]))
        half = len(split[largest]) // 2
        split[largest : largest + 1] = [split[largest][:half], split[largest][half:]]
    return split


def part_of(batch: Mapping[str, Any], pairs: Sequence[int]) -> dict[str, Any]:
    """Return the rows of some pairs of a padded batch, without last columns that are padding in all of them.

    Padding on the left stays: without it, a model with absolute positions would compute other log-probabilities.

    Args:
        batch: tensors of [2B, T].
        pairs: indices of the pairs, in [0, B).
    """
    rows = rows_of_pairs(pairs, len(batch["labels"]) // 2)
    width = int(_widths(batch["attention_mask"][rows]).max())
    return {name: value[rows, :width] for name, value in batch.items()}


def rows_of_pairs(pairs: Sequence[int], total: int) -> list[int]:
    """Return the rows of some pairs in a batch of ``total`` pairs: those of their chosen responses first."""
    return [*pairs, *(total + pair for pair in pairs)]


def _widths(attention_mask: Tensor) -> Tensor:
    """Return the number of columns up to the last token of each row, [R], of an attention mask [R, T]."""
    columns = torch.arange(1, attention_mask.shape[1] + 1, device=attention_mask.device)
    return torch.where(attention_mask != 0, columns, 0).amax(-1)
