"""Layers with a state over a row of pairs: the state after the shared tokens continues in both responses.

Supported is the gated delta rule of linear attention. Such a layer mixes tokens in two places: a causal convolution
over the last few tokens, and a recurrence with a state. The layer itself runs unchanged on the row; for a call with a
layout, the two functions that it calls are replaced:

- the convolution runs over the row with the left context of each part inserted: zeros before a pair, the last shared
  tokens before the rejected response;
- the recurrence runs twice: over the shared tokens of all pairs, and from their final states over both responses.

Everything is differentiable: gradients of both responses reach the shared tokens through the state and the context. The
sequences of a recurrence are padded at the end with tokens that leave the state unchanged.

Slow twin: the layer on the padded batch, two rows per pair.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepo.errors import SepoError
from sepo.forward.exchange import exchanged
from sepo.forward.shared_prompt import LAYOUT, PairLayout


class UnknownStateLayerError(SepoError):
    """Raised if a layer with a state does not call the functions that carry the state over a row of pairs."""


@dataclass(frozen=True)
class _Function:
    """A function that a layer calls: the attribute ``name`` of the layer, or of the Python module of its class."""

    owner: Any
    name: str

    @property
    def value(self) -> Callable[..., Any]:
        """The function that is set at present."""
        function: Callable[..., Any] = getattr(self.owner, self.name)
        return function


_DELTA_RULES = ("chunk_gated_delta_rule", "torch_chunk_gated_delta_rule")
_CONVOLUTION = "causal_conv1d_fn"


def _function_of(layer: nn.Module, *names: str) -> _Function | None:
    """Return the first of the functions that a layer has, itself or in the Python module of its class."""
    for owner in (layer, sys.modules[type(layer).__module__]):
        for name in names:
            if hasattr(owner, name):  # None if the library with a fused one is not installed
                return _Function(owner, name) if callable(getattr(owner, name)) else None
    return None


def state_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model whose state can be carried over a row of pairs.

    Args:
        model: any model. A layer is recognized by what it computes with: a module ``conv1d`` and the function of the
            chunked gated delta rule (Qwen3-Next, Qwen3.5).
    """
    return [
        module
        for module in model.modules()
        if isinstance(getattr(module, "conv1d", None), nn.Conv1d) and _function_of(module, *_DELTA_RULES) is not None
    ]


class _Carrier:
    """The replacement of a layer's forward, and the layout of the call of the block that it is part of."""

    def __init__(self, block: nn.Module, layer: nn.Module) -> None:
        self.layer, self.own = layer, layer.__dict__.get("forward")
        self.layout: PairLayout | None = None
        self.handle = block.register_forward_pre_hook(self.receive, with_kwargs=True)

    def receive(self, block: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Keep the layout that a block is called with, which it need not pass to its layers. Also runs when the block
        is recomputed in the backward pass."""
        self.layout = kwargs.get(LAYOUT)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer, over a row of pairs if its block was called with a layout."""
        own = self.own or type(self.layer).forward.__get__(self.layer)
        layout, self.layout = self.layout, None
        kwargs.pop(LAYOUT, None)
        if layout is None:
            return own(*args, **kwargs)
        calls: set[str] = set()
        with _carried(self.layer, layout, calls):
            output = own(*args, **{**kwargs, "attention_mask": None})
        missing = {"convolution", "recurrence"} - calls
        if missing:
            raise UnknownStateLayerError(
                f"{type(self.layer).__name__} called no {' and no '.join(sorted(missing))} that carries its state over "
                "a row of pairs"
            )
        layout.carried += 1
        return output


def _carrier_of(layer: nn.Module) -> _Carrier | None:
    carrier = getattr(layer.__dict__.get("forward"), "__self__", None)
    return carrier if isinstance(carrier, _Carrier) else None


def carry_states(model: nn.Module) -> None:
    """Let the layers of ``state_layers`` carry their state over rows of pairs; calls without a layout are unchanged.

    Args:
        model: the model without wrappers.
    """
    layers = {id(layer) for layer in state_layers(model)}
    blocks = [(block, child) for block in model.modules() for child in block.children() if id(child) in layers]
    for block, layer in blocks:
        if _carrier_of(layer) is None:
            layer.forward = _Carrier(block, layer).forward


def drop_states(model: nn.Module) -> None:
    """Undo ``carry_states``."""
    for layer in model.modules():
        carrier = _carrier_of(layer)
        if carrier is not None:
            carrier.handle.remove()
            del layer.forward
            if carrier.own is not None:
                layer.forward = carrier.own


@contextlib.contextmanager
def _carried(layer: Any, layout: PairLayout, calls: set[str]) -> Iterator[None]:
    """Replace the functions that a layer calls by those over a row of pairs, for one call; record which ran."""
    parts = _parts(layout, layer.conv1d.kernel_size[0])
    recurrence = _function_of(layer, *_DELTA_RULES)
    assert recurrence is not None  # by `state_layers`
    own_recurrence = recurrence.value

    def recur(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        calls.add("recurrence")
        kwargs.pop(LAYOUT, None)
        return _delta_rule(own_recurrence, parts, *args, **kwargs), None

    def convolve(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def over_the_row(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            calls.add("convolution")
            kwargs.pop(LAYOUT, None)
            inserted = F.pad(x, (1, 0)).index_select(-1, parts.convolved)
            return own(inserted, *args, **kwargs).index_select(-1, parts.kept)

        return over_the_row

    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(recurrence, recur))
        fused = _function_of(layer, _CONVOLUTION)
        if fused is not None:
            stack.enter_context(_replaced(fused, convolve(fused.value)))
        else:
            stack.enter_context(exchanged(layer.conv1d, convolve(layer.conv1d.forward)))
        yield


@contextlib.contextmanager
def _replaced(function: _Function, other: Callable[..., Any]) -> Iterator[None]:
    """Replace a function that a layer calls, and restore it afterwards."""
    own = function.value
    setattr(function.owner, function.name, other)
    try:
        yield
    finally:
        setattr(function.owner, function.name, own)


@dataclass(frozen=True)
class _Parts:
    """Where the parts of the pairs are in a row of N tokens, as indices; token t has index t + 1, and 0 is for zeros.

    Args:
        convolved: [M], the row with the left context of each part inserted.
        kept: [N], for each token of the row its index in ``convolved`` (from 0).
        shared: [B, S], the shared tokens of each pair, padded at the end.
        responses: [2B, R], the other tokens of the chosen and then of the rejected responses, padded at the end.
        placed: [N], for each token of the row its index in the flattened ``shared`` followed by ``responses`` (from 0).
    """

    convolved: Tensor
    kept: Tensor
    shared: Tensor
    responses: Tensor
    placed: Tensor


def _parts(layout: PairLayout, kernel: int) -> _Parts:
    """Return the parts of a row, for a convolution over ``kernel`` tokens; computed once per layout."""
    if kernel not in layout.parts:
        layout.parts[kernel] = _parts_of(layout, kernel)
    parts: _Parts = layout.parts[kernel]
    return parts


def _parts_of(layout: PairLayout, kernel: int) -> _Parts:
    spans, before = layout.spans, kernel - 1
    width = max(span.shared for span in spans)
    rest = max(max(span.chosen, span.rejected) for span in spans)
    shared = torch.zeros(len(spans), width, dtype=torch.long)
    responses = torch.zeros(2, len(spans), rest, dtype=torch.long)
    placed, kept = torch.empty(2, layout.tokens, dtype=torch.long)
    convolved = []
    length = 0
    for pair, span in enumerate(spans):
        at = torch.arange(span.start, span.end)
        common, chosen, rejected = at.split([span.shared, span.chosen, span.rejected])
        shared[pair, : span.shared] = common + 1
        placed[common] = pair * width + torch.arange(span.shared)
        for side, own in enumerate((chosen, rejected)):
            responses[side, pair, : len(own)] = own + 1
            first = len(spans) * width + (side * len(spans) + pair) * rest
            placed[own] = first + torch.arange(len(own))
        context = F.pad(common[max(0, span.shared - before) :] + 1, (max(0, before - span.shared), 0))
        for left, own in (
            (torch.zeros(before, dtype=torch.long), at[: span.shared + span.chosen]),
            (context, rejected),
        ):
            convolved += [left, own + 1]
            kept[own] = length + before + torch.arange(len(own))
            length += before + len(own)
    device = layout.source.device
    parts = (torch.cat(convolved), kept, shared, responses.flatten(0, 1), placed)
    return _Parts(*(part.to(device) for part in parts))


def _delta_rule(
    own: Callable[..., tuple[Tensor, Tensor]],
    parts: _Parts,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    g: Tensor,
    beta: Tensor,
    initial_state: None = None,
    output_final_state: bool = False,
    **kwargs: Any,
) -> Tensor:
    """Compute the gated delta rule of each sequence of a row.

    Args:
        own: the layer's function, which takes and returns a state per sequence.
        parts: the parts of the row.
        query: [1, N, heads, D].
        key: [1, N, heads, D].
        value: [1, N, heads, D'].
        g: logarithm of the decay, [1, N, heads]; 0 keeps the state.
        beta: strength of the update, [1, N, heads]; 0 for none.
        initial_state: None, as without a cache.
        output_final_state: False, as without a cache.
        **kwargs: passed to the function.

    Returns:
        [1, N, heads, D'].
    """
    if initial_state is not None or output_final_state:
        raise UnknownStateLayerError("a row of pairs ran with a cache: set use_cache to false")
    # one zero token in front, which padding is taken from
    tokens = [F.pad(each, (0, 0) * (each.dim() - 2) + (1, 0)) for each in (query, key, value, g, beta)]
    outputs, state = [], None
    for index in (parts.shared, parts.responses):
        if index.numel():
            q, k, v, decay, strength = (
                each[0].index_select(0, index.flatten()).unflatten(0, index.shape) for each in tokens
            )
            more = {"initial_state": state, "output_final_state": index is parts.shared}
            output, state = own(q, k, v, g=decay, beta=strength, **more, **kwargs)
            outputs.append(output.flatten(0, 1))
            state = None if state is None else torch.cat([state, state])
    return torch.cat(outputs).index_select(0, parts.placed)[None]
