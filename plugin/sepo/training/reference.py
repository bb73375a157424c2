"""The reference of a run that loads no second model: the policy as it was when training started."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


class StartingPolicy:
    """The policy's trainable weights as they are now, put back for the length of a reference forward pass.

    A LoRA run that goes on with an SFT adapter has this reference: the base with that adapter, frozen. Switching the
    adapter off would make the raw base the reference instead.

    Args:
        model: the policy, before it is trained or a checkpoint is loaded. Costs one copy of its trainable weights.
    """

    def __init__(self, model: nn.Module) -> None:
        self._start = [
            (parameter, parameter.detach().clone()) for parameter in model.parameters() if parameter.requires_grad
        ]

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Exchange the trainable weights for the starting ones, and back; for passes without gradients."""
        trained = [parameter.data for parameter, _ in self._start]
        try:
            for parameter, start in self._start:
                parameter.data = start
            yield
        finally:
            for (parameter, _), data in zip(self._start, trained, strict=True):
                parameter.data = data
