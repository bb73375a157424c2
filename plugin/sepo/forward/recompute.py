"""Gradient checkpointing with less recomputation: only what the backward pass reads, and not the last layer.

Reentrant checkpointing, the host's default, recomputes a layer to its end. Torch's non-reentrant checkpointing stops as
soon as it has the tensors that the backward pass reads; with the LoRA forward of this package that is before the last
matrix product of a layer, which saves a fifth of the layer or more. The last layer is needed as soon as the backward
pass starts, so that discarding its activations saves no memory. Values and gradients are the same.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_FUNCTION = "_gradient_checkpointing_func"


def recompute_less(model: nn.Module) -> int:
    """Replace the checkpointing of a model's layers, until ``recompute_as_before``.

    Args:
        model: any model. Not changed are layers that are not checkpointed, or by another function than torch's
            reentrant one (for example unsloth's), and layers whose weights ZeRO-3 gathers (their shapes change between
            the passes).

    Returns:
        The number of layers that are checkpointed by this module.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        if _is_reentrant(layer):
            setattr(layer, _FUNCTION, _Lean(getattr(layer, _FUNCTION), keeps=layer is layers[-1]))
    return sum(isinstance(getattr(layer, _FUNCTION, None), _Lean) for layer in layers)


def recompute_as_before(model: nn.Module) -> None:
    """Restore the original checkpointing of a model's layers."""
    for module in model.modules():
        function = getattr(module, _FUNCTION, None)
        if isinstance(function, _Lean):
            setattr(module, _FUNCTION, function.own)


def is_computed_again(layer: nn.Module) -> bool:
    """Return whether a layer's forward is recomputed in the backward pass."""
    if not (layer.training and getattr(layer, "gradient_checkpointing", False)):
        return False
    function = getattr(layer, _FUNCTION, None)
    return not (isinstance(function, _Lean) and function.keeps)


def runs_without_graph(layer: Any) -> bool:
    """Return whether a checkpointed layer first runs without gradient, as under reentrant checkpointing: of its
    tensors, only its outputs then have one."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    if not (isinstance(layer, GradientCheckpointingLayer) and layer.training and layer.gradient_checkpointing):
        return False
    function = getattr(layer, _FUNCTION)
    if isinstance(function, _Lean):
        return False
    function = inspect.unwrap(function)
    return not (isinstance(function, functools.partial) and function.keywords.get("use_reentrant") is False)


def is_torch_reentrant(layer: Any) -> bool:
    """Return whether a layer is checkpointed by torch's reentrant function, which takes any number of outputs."""
    function = inspect.unwrap(getattr(layer, _FUNCTION))  # the host wraps the function
    return (
        isinstance(function, functools.partial)
        and function.func is checkpoint
        and function.keywords.get("use_reentrant") is True
    )


@contextlib.contextmanager
def handing_out(
    layer: Any, recording: Callable[[list[Tensor]], Any], *, number: int, into: list[Tensor]
) -> Iterator[None]:
    """Add tensors inside a reentrantly checkpointed layer to its outputs, for one pass, which gives them a gradient.

    Args:
        layer: a layer for which ``is_torch_reentrant`` holds.
        recording: takes a list, and returns a context manager that appends the tensors to it while the layer runs, in
            the forward pass and again in the backward pass.
        number: the number of these tensors.
        into: list to which they are appended, with their gradient.
    """
    own = getattr(layer, _FUNCTION)

    def checkpointed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        several = False

        def run(module: nn.Module, *inputs: Any, **named: Any) -> tuple[Any, ...]:
            nonlocal several
            inside: list[Tensor] = []
            with recording(inside):
                outputs = function(*inputs, **named)
            several = isinstance(outputs, tuple)
            return (*(outputs if several else (outputs,)), *inside)

        # a method of the layer: the host looks up the layer that a function belongs to
        results = own(functools.partial(MethodType(run, layer)), *args, **kwargs)
        into.extend(results[len(results) - number :])
        outputs = results[: len(results) - number]
        return outputs if several else outputs[0]

    setattr(layer, _FUNCTION, checkpointed)
    try:
        yield
    finally:
        setattr(layer, _FUNCTION, own)


class _Lean:
    """The replacement of a layer's checkpointing function."""

    def __init__(self, own: Callable[..., Any], *, keeps: bool) -> None:
        self.own = own
        self.keeps = keeps

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.keeps:
            return function(*args, **kwargs)
        return checkpoint(function, *args, use_reentrant=False, **kwargs)


def _is_reentrant(layer: Any) -> bool:
    return (
        layer.gradient_checkpointing
        and is_torch_reentrant(layer)
        and not any(hasattr(weight, mark) for weight in layer.parameters() for mark in ("ds_id", "to_local"))
    )
