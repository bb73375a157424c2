"""Forward passes without dropout, in a model that trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off for a reference forward pass: a policy in training that is its own reference has it on.

    Args:
        model: every module of it that is in training mode is so again afterwards, and no other.
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
