"""Forward passes without dropout in a model in training mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Disable dropout for a reference forward pass, for example of a policy in training that is its own reference.

    The mode of bitsandbytes layers is not changed. They have no dropout, and on a CPU with AVX512-BF16 a 4-bit layer
    that runs in evaluation mode permanently repacks its weights for a kernel without a backward pass: all layers below
    it would then get no gradient.

    Args:
        model: exactly its modules that are in training mode are returned to training mode afterwards.
    """
    training = [module for module in model.modules() if module.training and not _is_quantized(module)]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _is_quantized(module: nn.Module) -> bool:
    return type(module).__module__.startswith("bitsandbytes.")
