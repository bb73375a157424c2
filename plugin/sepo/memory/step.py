"""Memory of a training step or a scoring batch besides the weights, measured by running it on tensors without data."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sepo.forward.attention import UnknownAttentionError, register
from sepo.forward.chunked import default_chunk_tokens, token_log_probs
from sepo.forward.head import known_transforms
from sepo.forward.lora import fuse_lora
from sepo.forward.recompute import recompute_less
from sepo.forward.router_loss import PairTokens, experts_per_token, pair_losses
from sepo.forward.shared_prompt import LAYOUT, PairLayout, PairSpan
from sepo.forward.sharing_support import refusal_of
from sepo.forward.state_layers import carry_states, drop_states
from sepo.memory.live import LiveBytes, tensors_of
from sepo.memory.shapes import NOTHING_TRAINS, Trained, model_with, on_cpu_without_data, without_data
from sepo.objectives import StateWeight, weigh_states

_DEPTHS = (4, 6)
"""Depths of the models that are run; in most models with several kinds of layers the pattern has period two."""
_DEPTHS_OF_EQUAL_LAYERS = (2, 3)
"""The same for models whose first six layers are equal."""


@dataclass(frozen=True)
class Row:
    """The tokens of one forward pass.

    Args:
        pairs: (prompt, chosen, rejected) tokens of each pair.
        selected: number of tokens that need a log-probability.
    """

    pairs: tuple[tuple[int, int, int], ...]
    selected: int

    @property
    def tokens(self) -> int:
        """Number of tokens in the row, counting each prompt once."""
        return sum(map(sum, self.pairs))

    @property
    def selected_lengths(self) -> list[int]:
        """The selected tokens of each response, all chosen ones first, if each has the same share of them."""
        lengths = [chosen for _, chosen, _ in self.pairs] + [rejected for _, _, rejected in self.pairs]
        ends = [round(end * self.selected / sum(lengths)) for end in itertools.accumulate(lengths)]
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]


@dataclass(frozen=True)
class Pass:
    """The settings of a pass through a model.

    Args:
        dtype: dtype of the frozen weights.
        autocast: the dtype of autocast, or None.
        trained: the trainable weights.
        backward: whether a backward pass follows; otherwise the pass has no gradients.
        checkpointing: whether gradient checkpointing is enabled.
        head_chunk_tokens: number of tokens whose logits exist at a time; None for the default.
        token_weight: the weight that is computed from hidden states, or None.
        router_loss: whether the load-balancing loss of a mixture of experts is computed.
    """

    dtype: torch.dtype
    autocast: torch.dtype | None = None
    trained: Trained = NOTHING_TRAINS
    backward: bool = True
    checkpointing: bool = True
    head_chunk_tokens: int | None = None
    token_weight: StateWeight | None = None
    router_loss: bool = False


def step_bytes(config: Any, row: Row, how: Pass) -> int:
    """Return the peak bytes of activations and all other tensors of a pass, without weights and gradients.

    With a backward pass two depths are run and the result is extrapolated: each further layer costs as much as the last
    ones. Without one a layer keeps nothing, so that the deeper one, which has more kinds of layers, has the same peak.

    Args:
        config: the model's transformers configuration.
        row: the tokens.
        how: the settings of the pass.

    Returns:
        Bytes of one process.
    """
    (found,) = in_depth(config, lambda depth: (_step_bytes(*at_depth(config, depth), row, how),), grows=how.backward)
    return found


def in_depth(config: Any, measure: Callable[[int], tuple[int, ...]], *, grows: bool = True) -> tuple[int, ...]:
    """Return numbers of a model from those of models with fewer layers.

    Args:
        config: the model's transformers configuration.
        measure: returns the numbers of the model with a number of layers.
        grows: whether each further layer adds as much as the last ones; if not, it adds nothing.
    """
    layers = int(config.num_hidden_layers)
    if layers <= _DEPTHS_OF_EQUAL_LAYERS[1]:
        return measure(layers)
    depths = _depths(config)
    if layers <= depths[1]:
        return measure(layers)
    if not grows:
        return measure(depths[1])
    few, more = (measure(depth) for depth in depths)
    step = depths[1] - depths[0]
    return tuple(last + (layers - depths[1]) * (last - first) // step for first, last in zip(few, more, strict=True))


def at_depth(config: Any, layers: int) -> tuple[str, Any]:
    """Return a configuration with another number of layers as JSON, which a cache can have as key, and its class."""
    values = {**config.to_dict(), "num_hidden_layers": layers}
    if values.get("layer_types"):
        values["layer_types"] = values["layer_types"][:layers]
    return json.dumps(values, sort_keys=True, default=str), config.__class__


def _depths(config: Any) -> tuple[int, int]:
    """Return the depths of the models that are run in place of a deeper one."""
    kinds = getattr(config, "layer_types", None) or ()
    alike = len(set(kinds)) <= 1 and equal_layers(*at_depth(config, _DEPTHS[1]))
    return _DEPTHS_OF_EQUAL_LAYERS if alike else _DEPTHS


@functools.lru_cache(maxsize=64)
def equal_layers(config: str, kind: Any) -> bool:
    """Return whether all layers of a model have the same modules, shapes and settings; False if it has none in a list.

    Args:
        config: its configuration, as from ``at_depth``.
        kind: the configuration's class.
    """
    model = model_with(kind.from_dict(json.loads(config)), torch.float32, NOTHING_TRAINS)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    lists = [module for module in decoder.children() if isinstance(module, nn.ModuleList)]
    depth = model.config.num_hidden_layers
    if len(lists) != 1 or len(lists[0]) != depth:
        return False
    first, *others = map(_description, lists[0])
    return all(other == first for other in others)


_OF_ONE_LAYER = frozenset({"layer_idx", "layer_id"})
"""Settings of a module that are its place in the model."""


def _description(layer: nn.Module) -> list[Any]:
    """Return what determines the memory of a layer: its modules with their settings, and the shapes of its weights."""
    plain = (bool, int, float, str, tuple, type(None))

    def settings(module: nn.Module) -> dict[str, Any]:
        given = vars(module).items()
        return {key: value for key, value in given if isinstance(value, plain) and key not in _OF_ONE_LAYER}

    modules = [(name, type(module), settings(module)) for name, module in layer.named_modules()]
    return [modules, [(name, weight.shape) for name, weight in layer.named_parameters()]]


@functools.lru_cache(maxsize=64)
def _step_bytes(config: str, kind: Any, row: Row, how: Pass) -> int:
    model = model_with(kind.from_dict(json.loads(config)), how.dtype, how.trained)
    with without_data(model):
        model = on_cpu_without_data(model).train(how.backward)
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        own = inner.config._attn_implementation
        if refusal_of(inner) is None:
            inner.config._attn_implementation = register("sdpa")
            carry_states(inner)
            try:
                return _measured(model, inner, _row_inputs(row), row, how)
            except UnknownAttentionError:  # the same fallback as in training
                inner.config._attn_implementation = own
                drop_states(inner)
        return _measured(model, inner, _padded_inputs(row), row, how)


def _measured(model: Any, inner: Any, inputs: dict[str, Any], row: Row, how: Pass) -> int:
    with_checkpointing(inner, how)
    fuse_lora(model)
    recompute_less(model, kept_bytes=0)
    live = live_bytes(model)
    autocast = autocast_of(how.autocast)
    with live, torch.set_grad_enabled(how.backward):
        with autocast:
            states, routers = _states(inner, inputs, row.selected, router_logits=how.router_loss)
            if how.token_weight is not None:
                weigh_states(how.token_weight, states.detach(), row.selected_lengths)
            head = inner.get_output_embeddings()
            chunk = how.head_chunk_tokens or default_chunk_tokens(head.weight.shape[0])
            targets = torch.zeros(row.selected, dtype=torch.long)
            transform, _ = known_transforms(inner)
            values = token_log_probs(
                states, head.weight, targets, bias=head.bias, chunk_tokens=chunk, transform=transform
            )
            if routers:
                values = torch.cat([values, _router_losses(inner, inputs, routers)])
            del routers
        if how.backward:
            values.sum().backward()
    return live.peak


def with_checkpointing(inner: Any, how: Pass) -> None:
    """Enable gradient checkpointing if a pass has it and the model supports it."""
    if how.checkpointing and how.backward and inner.supports_gradient_checkpointing:
        inner.gradient_checkpointing_enable({"use_reentrant": True})


def live_bytes(model: Any) -> LiveBytes:
    """Return a counter of bytes that leaves out a model's weights and their gradients, which exist from here on."""
    live = LiveBytes()
    live.leave_out(tensors_of(model))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
            live.leave_out([parameter.grad])
    return live


def autocast_of(dtype: torch.dtype | None) -> torch.autocast:
    """Return the context of autocast to a dtype on a CPU, or of none."""
    return torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None)


def _states(
    inner: Any, inputs: dict[str, Any], selected: int, *, router_logits: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    more = {"output_router_logits": True} if router_logits else {}
    outputs = inner.get_decoder()(**inputs, use_cache=False, **more)
    hidden = outputs[0]
    flat: Tensor = hidden.reshape(-1, hidden.shape[-1])
    return flat[torch.arange(selected) % flat.shape[0]], getattr(outputs, "router_logits", None) or ()


def _router_losses(inner: Any, inputs: dict[str, Any], router_logits: tuple[Tensor, ...]) -> Tensor:
    layout: PairLayout | None = inputs.get(LAYOUT)
    rows, width = inputs["input_ids"].shape
    sizes = (width,) * rows if layout is None else tuple(span.end - span.start for span in layout.spans)
    pairs = rows // 2 if layout is None else len(layout.spans)
    tokens = PairTokens(torch.ones(rows * width), sizes, pairs)
    return pair_losses(router_logits, tokens, top_k=experts_per_token(inner))


def _row_inputs(row: Row) -> dict[str, Any]:
    spans, start = [], 0
    for prompt, chosen, rejected in row.pairs:
        spans.append(PairSpan(start, prompt, chosen, rejected))
        start = spans[-1].end
    ids = torch.zeros(1, start, dtype=torch.long)
    layout = PairLayout(tuple(spans), ids[0], ids[0], ids)
    mask = torch.tensor([[[[False]]]])  # of one known number: models with state layers read whether all are 1
    return {"input_ids": ids, "position_ids": ids, "attention_mask": mask, LAYOUT: layout}


def _padded_inputs(row: Row) -> dict[str, Any]:
    """Return the inputs of the plain path: two rows per pair."""
    longest = max(prompt + max(chosen, rejected) for prompt, chosen, rejected in row.pairs)
    ids = torch.zeros(2 * len(row.pairs), longest, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def largest_row(pairs: int, *, cutoff: int, batch_tokens: int | None, share: float) -> Row:
    """Return the most expensive row: every pair fills the cutoff on both sides, with a prompt of one token.

    Args:
        pairs: number of pairs in a device batch.
        cutoff: maximum number of tokens of a prompt with one response.
        batch_tokens: maximum number of tokens in one forward pass, or None.
        share: share of the response tokens that need a log-probability.
    """
    pair = (1, cutoff - 1, cutoff - 1)
    if batch_tokens is not None:
        pairs = max(1, min(pairs, batch_tokens // sum(pair)))
    return Row((pair,) * pairs, max(1, round(share * pairs * 2 * (cutoff - 1))))


def scoring_row(budget: int, *, cutoff: int) -> Row:
    """Return a scoring batch under a token budget, with at least one pair."""
    pairs = max(1, budget // (2 * cutoff))
    return Row(((1, cutoff - 1, cutoff - 1),) * pairs, pairs * 2 * (cutoff - 1))
