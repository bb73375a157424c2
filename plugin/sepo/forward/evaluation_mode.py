"""Forward passes without dropout, in a model that trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off for a reference forward pass: a policy in training that is its own reference has it on.

    Layers of bitsandbytes stay as they are. They have no dropout, and on a CPU with AVX512-BF16 a 4-bit layer that runs
    in evaluation mode repacks its weights for good, for a kernel without a backward pass: every layer below it would
    then train without a gradient.

    Args:
        model: every module of it that is in training mode is so again afterwards, and no other.
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
