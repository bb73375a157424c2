"""Gradient checkpointing with less recomputation: only what the backward pass reads, not the last layer, and not the
results that fit into a number of bytes (``kept_results``).

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
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sepo.forward.kept_results import LayerCosts, ResultBudget
from sepo.forward.shared_prompt import LAYOUT, PairLayout

_FUNCTION = "_gradient_checkpointing_func"

_BUDGETS: WeakKeyDictionary[nn.Module, ResultBudget] = WeakKeyDictionary()
"""What the layers of a model keep; measured costs outlive ``recompute_as_before``."""


def recompute_less(model: nn.Module, *, kept_bytes: int | None = None) -> int:
    """Replace the checkpointing of a model's layers, until ``recompute_as_before``.

    Args:
        model: any model. Not changed are layers that are not checkpointed, or by another function than torch's
            reentrant one (for example unsloth's), and layers whose weights ZeRO-3 gathers (their shapes change between
            the passes).
        kept_bytes: maximum number of bytes of results that are kept from the forward pass for the recomputation (see
            ``kept_results``); 0 for none, None for the default of ``ResultBudget``.

    Returns:
        The number of layers that are checkpointed by this module.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    budget = _BUDGETS.setdefault(model, ResultBudget(vocabulary=_vocabulary(model)))
    budget.limit = kept_bytes
    for layer in layers:
        if _is_reentrant(layer):
            costs = None if layer is layers[-1] else budget.costs_of(layer)
            setattr(layer, _FUNCTION, _Lean(getattr(layer, _FUNCTION), budget, costs))
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

    def __init__(self, own: Callable[..., Any], budget: ResultBudget, costs: LayerCosts | None) -> None:
        self.own = own
        self.keeps = costs is None
        self._budget, self._costs = budget, costs

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._costs is None:
            return function(*args, **kwargs)
        states = args[0] if args else None
        if self._budget.limit == 0 or not isinstance(states, Tensor) or torch.compiler.is_compiling():
            return checkpoint(function, *args, use_reentrant=False, **kwargs)
        if self._costs is self._budget.layers[0]:
            self._budget.choose(states, **_tokens(function, states))
        contexts = functools.partial(self._budget.contexts, self._costs, states)
        return checkpoint(function, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _tokens(function: Callable[..., Any], states: Tensor) -> dict[str, int]:
    """Return the tokens of the padded batch that a layer runs on, which the host's own step would compute, and those
    that go through the head."""
    named = function.keywords if isinstance(function, functools.partial) else {}
    layout: PairLayout | None = named.get(LAYOUT)
    tokens = states.shape[:-1].numel()
    if layout is None:
        return {"padded_tokens": tokens, "head_tokens": tokens}
    wanted = tokens if layout.wanted is None else layout.wanted
    return {"padded_tokens": layout.placed.numel(), "head_tokens": wanted}


def _vocabulary(model: nn.Module) -> int:
    config: Any = getattr(model, "config", None)
    return int(getattr(getattr(config, "text_config", None) or config, "vocab_size", 0))


def _is_reentrant(layer: Any) -> bool:
    return (
        layer.gradient_checkpointing
        and is_torch_reentrant(layer)
        and not any(hasattr(weight, mark) for weight in layer.parameters() for mark in ("ds_id", "to_local"))
    )
