"""Layers with a state over a row of pairs: the state after the shared tokens continues in both responses.

Supported are the gated delta rule of linear attention and the state spaces of Mamba 2. Such a layer mixes tokens in two
places: a causal convolution over the last few tokens, and a recurrence with a state. The layer itself runs unchanged on
the row; for a call with a layout, the two functions that it calls are replaced:

- the convolution runs over the row with the left context of each part inserted: zeros before a pair, the last shared
  tokens before the rejected response;
- the recurrence runs twice: over the shared tokens of all pairs, and from their final states over both responses.

Everything is differentiable: gradients of both responses reach the shared tokens through the state and the context. The
shared tokens are padded at the start with zeros, which leave a state of zeros unchanged, and the responses at the end.

Slow twin: the layer on the padded batch, two rows per pair.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepo.errors import SepoError
from sepo.forward.delta_rule import chunk_gated_delta_rule
from sepo.forward.exchange import exchanged
from sepo.forward.frozen_convolution import lean_convolution
from sepo.forward.shared_prompt import LAYOUT, PairLayout
from sepo.forward.state_space import chunk_scan


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


_PLAIN_DELTA_RULE = "torch_chunk_gated_delta_rule"
_DELTA_RULES = ("chunk_gated_delta_rule", _PLAIN_DELTA_RULE)
_SCANS = ("mamba2_chunk_scan", "mamba_chunk_scan_combined")
_FUSED_SCAN = "mamba2_split_conv1d_scan_combined"
_CONVOLUTION = "causal_conv1d_fn"


def _function_of(layer: nn.Module, *names: str) -> _Function | None:
    """Return the first of the functions that a layer has, itself or in the Python module of its class."""
    for owner in (layer, sys.modules[type(layer).__module__]):
        for name in names:
            if hasattr(owner, name):
                return _Function(owner, name)
    return None


def _is_plain_delta_rule(layer: nn.Module, function: Callable[..., Any]) -> bool:
    """Return whether a layer's delta rule is transformers' function without kernels, by the function itself."""
    module = sys.modules[type(layer).__module__]
    return module.__name__.startswith("transformers.models.") and function is getattr(module, _PLAIN_DELTA_RULE, None)


def _by_kernels(layer: Any) -> Callable[..., Any] | None:
    """Return the forward of a Mamba 2 layer that calls a function for its recurrence, if it has another one as well."""
    forward = getattr(layer, "cuda_kernels_forward", None)
    return forward if forward is not None and "cache_position" not in inspect.signature(forward).parameters else None


def _is_supported(layer: nn.Module) -> bool:
    if not isinstance(getattr(layer, "conv1d", None), nn.Conv1d):
        return False
    if _function_of(layer, *_DELTA_RULES) is not None:
        return True
    return (
        hasattr(layer, "A_log")
        and _function_of(layer, *_SCANS) is not None
        and (not hasattr(layer, "cuda_kernels_forward") or _by_kernels(layer) is not None)
    )


def state_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model whose state can be carried over a row of pairs.

    Args:
        model: any model. A layer is recognized by what it computes with: a module ``conv1d``, and the function of the
            chunked gated delta rule (Qwen3-Next, Qwen3.5) or of Mamba 2 (Granite 4, Bamba, Zamba2, Nemotron-H).
    """
    return [module for module in model.modules() if _is_supported(module)]


def _blocks(model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Return the layers with a state, each after the block that it is part of."""
    layers = {id(layer) for layer in state_layers(model)}
    return [(block, child) for block in model.modules() for child in block.children() if id(child) in layers]


class _NoCache:
    """The cache of a call without one: a Mamba 2 layer in training calls one kernel for everything if it has none."""

    def has_previous_state(self, *args: Any, **kwargs: Any) -> bool:
        return False

    def update_conv_state(self, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return states

    update_recurrent_state = update_conv_state


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
        own: Callable[..., Any] = self.own or type(self.layer).forward.__get__(self.layer)
        layout, self.layout = self.layout, None
        kwargs.pop(LAYOUT, None)
        if layout is None:
            return own(*args, **kwargs)
        calls: set[str] = set()
        kwargs["attention_mask"] = None
        by_kernels = _by_kernels(self.layer)
        if by_kernels is not None:
            own, taken = by_kernels, inspect.signature(by_kernels).parameters
            kwargs = {name: value for name, value in kwargs.items() if name in taken}
            kwargs["cache_params"] = _NoCache()
        try:
            with _carried(self.layer, layout, calls):
                output = own(*args, **kwargs)
        except (AttributeError, TypeError) as error:
            raise UnknownStateLayerError(
                f"{type(self.layer).__name__} does not run over a row of pairs in this version ({error})"
            ) from error
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
    for block, layer in _blocks(model):
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
    fused, convolution = (_function_of(layer, name) for name in (_FUSED_SCAN, _CONVOLUTION))
    with contextlib.ExitStack() as stack:
        delta_rule, scan = (_function_of(layer, *names) for names in (_DELTA_RULES, _SCANS))
        if delta_rule is not None:
            rule: Callable[..., Any] = delta_rule.value
            if _is_plain_delta_rule(layer, rule):
                rule = chunk_gated_delta_rule
            stack.enter_context(_replaced(delta_rule, _recorded(calls, "recurrence", _delta_rule, rule, parts)))
        elif scan is not None:
            own = scan.value
            if _by_kernels(layer) is not None and (own is None or not layer.conv1d.weight.is_cuda):
                own = chunk_scan
            stack.enter_context(_replaced(scan, _recorded(calls, "recurrence", _scan, own, parts)))
        if fused is not None:
            stack.enter_context(_replaced(fused, lambda *args, **kwargs: None))  # as without its kernel
        kernel: Any = convolution.value if convolution is not None else None
        if convolution is not None and (kernel is not None or _by_kernels(layer) is not None):
            own = functools.partial(_plain_convolution, layer) if kernel is None else kernel
            stack.enter_context(_replaced(convolution, _recorded(calls, "convolution", _convolution, own, parts)))
        else:
            own = lean_convolution(layer.conv1d)
            stack.enter_context(exchanged(layer.conv1d, _recorded(calls, "convolution", _convolution, own, parts)))
        yield


def _recorded(calls: set[str], name: str, function: Callable[..., Any], own: Any, parts: _Parts) -> Callable[..., Any]:
    """Return a function over a row of pairs, which records that it was called."""

    def run(*args: Any, **kwargs: Any) -> Any:
        calls.add(name)
        kwargs.pop(LAYOUT, None)
        return function(own, parts, *args, **kwargs)

    return run


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
        shared: [B, S], the shared tokens of each pair, padded at the start.
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
        shared[pair, width - span.shared :] = common + 1
        placed[common] = (pair + 1) * width - span.shared + torch.arange(span.shared)
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


def _convolution(own: Callable[..., Tensor], parts: _Parts, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Compute the convolution [1, D, N] of each sequence of a row; the function of the layer takes ``x`` first."""
    inserted = F.pad(x, (1, 0)).index_select(-1, parts.convolved)
    return own(inserted, *args, **kwargs).index_select(-1, parts.kept)


def _plain_convolution(layer: Any, x: Tensor, **kwargs: Any) -> Tensor:
    """Compute what the kernel of a layer's convolution does."""
    output: Tensor = layer.act(layer.conv1d(x)[..., : x.shape[-1]])
    return output


def _over_parts(
    parts: _Parts, tokens: Sequence[Tensor], run: Callable[[list[Tensor], Tensor | None, bool], tuple[Tensor, Tensor]]
) -> Tensor:
    """Run a recurrence over the shared tokens, and from their states over both responses.

    Args:
        parts: the parts of the row.
        tokens: tensors with one entry per token, [1, N, ...].
        run: takes these tensors for several sequences, [R, T, ...], the states that they start from, and whether the
            final states are needed; returns outputs [R, T, ...] and states [R, ...].

    Returns:
        The outputs of the row, [1, N, ...].
    """
    # one token of zeros in front, from which padding is taken
    tokens = [F.pad(each, (0, 0) * (each.dim() - 2) + (1, 0))[0] for each in tokens]
    outputs, state = [], None
    for index in (parts.shared, parts.responses):
        if index.numel():
            sequences = [each.index_select(0, index.flatten()).unflatten(0, index.shape) for each in tokens]
            output, state = run(sequences, state, index is parts.shared)
            outputs.append(output.flatten(0, 1))
            state = None if state is None else torch.cat([state, state])
    return torch.cat(outputs).index_select(0, parts.placed)[None]


def _without_cache(*states: Any) -> None:
    if any(state is not None and state is not False for state in states):
        raise UnknownStateLayerError("a row of pairs ran with a cache or with packed sequences")


def _delta_rule(
    own: Callable[..., tuple[Tensor, Tensor]], parts: _Parts, query: Tensor, key: Tensor, value: Tensor, *,
    g: Tensor, beta: Tensor, initial_state: Any = None, output_final_state: bool = False, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Compute the gated delta rule of each sequence of a row.

    Args:
        own: the layer's function, which takes and returns a state per sequence.
        parts: the parts of the row.
        query: [1, N, heads, D].
        key: [1, N, heads, D].
        value: [1, N, heads, D'].
        g: logarithm of the decay, [1, N, heads].
        beta: strength of the update, [1, N, heads].
        initial_state: None, as without a cache.
        output_final_state: False, as without a cache.
        **kwargs: passed to the function.

    Returns:
        [1, N, heads, D'], and None for the final state.
    """
    _without_cache(initial_state, output_final_state)

    def run(tokens: list[Tensor], state: Tensor | None, final: bool) -> tuple[Tensor, Tensor]:
        q, k, v, decay, strength = tokens
        return own(q, k, v, g=decay, beta=strength, initial_state=state, output_final_state=final, **kwargs)

    return _over_parts(parts, (query, key, value, g, beta), run), None


def _scan(
    own: Callable[..., Any], parts: _Parts, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *,
    z: Tensor | None = None, seq_idx: Any = None, initial_states: Any = None, return_final_states: bool = False,
    **kwargs: Any,
) -> Any:  # fmt: skip
    """Compute the recurrence of Mamba 2 for each sequence of a row; see ``state_space.chunk_scan``.

    Returns:
        [1, N, heads, D], followed by None for the final states if they were requested.
    """
    _without_cache(seq_idx, initial_states)

    def run(tokens: list[Tensor], state: Tensor | None, final: bool) -> tuple[Tensor, Tensor]:
        x, dt, B, C, *gate = tokens
        more = {"z": gate[0]} if gate else {}
        # the final states are always requested, so that the function always returns two tensors
        output: tuple[Tensor, Tensor] = own(
            x, dt, A, B, C, initial_states=state, return_final_states=True, **more, **kwargs
        )
        return output

    y = _over_parts(parts, (x, dt, B, C) if z is None else (x, dt, B, C, z), run)
    return (y, None) if return_final_states else y
