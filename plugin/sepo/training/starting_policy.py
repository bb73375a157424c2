"""The reference of a run without a second model: the policy at the start of training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


class StartingPolicy:
    """A copy of the policy's trainable weights, swapped in for the duration of a reference forward pass.

    For a LoRA run that continues training an SFT adapter, the reference is the base with that adapter, frozen.
    Disabling the adapter would make the raw base the reference instead.

    Args:
        model: the policy, before it is trained or a checkpoint is loaded. Needs memory for one copy of its trainable
            weights.
    """

    def __init__(self, model: nn.Module) -> None:
        self._start = [
            (parameter, parameter.detach().clone()) for parameter in model.parameters() if parameter.requires_grad
        ]

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Swap in the starting weights and restore the current ones afterwards; for passes without gradients."""
        trained = [parameter.data for parameter, _ in self._start]
        try:
            for parameter, start in self._start:
                parameter.data = start
            yield
        finally:
            for (parameter, _), data in zip(self._start, trained, strict=True):
                parameter.data = data
