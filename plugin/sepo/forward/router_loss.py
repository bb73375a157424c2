"""The load-balancing loss of a mixture of experts, per pair, from the router logits of one forward pass.

The loss of transformers' models (``load_balancing_loss_func``; Switch Transformer, arXiv 2101.03961, equations 4 to 6):
over the attended tokens of a batch, in all layers with routers,

    E * sum_i f_i P_i,    f_i = mean over tokens of [expert i is among the top k],    P_i = mean of softmax(logits)_i.

It is a product of two means, so that the loss of a batch is not the mean of the losses of its parts. Here the batch is
always one pair, its two padded rows: the mean over pairs then depends neither on the device batch nor on gradient
accumulation, ``batch_tokens`` or the number of processes. A row of pairs holds a token that both responses share once;
it then counts twice.

Slow twin: a model's own ``aux_loss`` for the padded rows of each pair.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sepo.errors import SepoError
from sepo.forward.chunked import at_least_float32
from sepo.forward.evaluation_mode import in_evaluation_mode
from sepo.forward.exchange import exchanged
from sepo.forward.recompute import handing_out, is_torch_reentrant, runs_without_graph
from sepo.forward.shared_prompt import PairLayout

_PROBE_TOKENS = 16
"""Maximum number of tokens on which a model's own loss is compared with this module's."""
_REMOVE = "remove moe_aux_loss_coef (in Axolotl and PreferenceTrainer router_aux_loss_coef)"


@dataclass(frozen=True)
class PairTokens:
    """The tokens of a forward pass, by pair.

    Args:
        weights: [N], float32: number of tokens of the padded batch that each position stands for; 0 for padding.
        sizes: lengths of the consecutive runs of positions that belong to one pair; run r belongs to pair r modulo B.
        pairs: B.
    """

    weights: Tensor
    sizes: tuple[int, ...]
    pairs: int

    def sums(self, values: Tensor) -> Tensor:
        """Sum values [N, E] over the positions of each pair, to [B, E]."""
        runs = torch.stack([run.sum(0) for run in values.split(self.sizes)])
        return runs.view(-1, self.pairs, values.shape[1]).sum(0)


def pair_tokens(inputs: Mapping[str, Any], layout: PairLayout | None) -> PairTokens:
    """Return the tokens of a batch by pair.

    Args:
        inputs: the padded batch, ``input_ids`` [2B, T] with the first B rows chosen, ``attention_mask`` if it has one.
        layout: layout with all attended tokens of the batch, or None if the padded batch runs.
    """
    ids = inputs["input_ids"]
    rows, width = ids.shape
    if layout is None:
        mask = inputs.get("attention_mask")
        attended = torch.ones_like(ids) if mask is None else mask
        return PairTokens((attended != 0).flatten().float(), (width,) * rows, rows // 2)
    placed = layout.placed[layout.placed >= 0]
    weights = torch.bincount(placed, minlength=layout.tokens).float()
    return PairTokens(weights, tuple(span.end - span.start for span in layout.spans), rows // 2)


def pair_losses(router_logits: Sequence[Tensor], tokens: PairTokens, *, top_k: int) -> Tensor:
    """Compute the load-balancing loss of each pair.

    Args:
        router_logits: what each layer's router returned, [N, E] or with N in several dimensions.
        tokens: the N positions.
        top_k: number of experts per token.

    Returns:
        [B], float32 (float64 for float64 logits).
    """
    weights = tokens.weights[:, None]
    counts, totals = [], []
    for logits in router_logits:
        probabilities = at_least_float32(logits.to(weights.device)).flatten(0, -2).softmax(-1)
        _, experts = probabilities.topk(top_k, -1)
        routed = torch.zeros_like(probabilities).scatter_(1, experts, weights.to(probabilities).expand_as(experts))
        counts.append(tokens.sums(routed))
        totals.append(tokens.sums(probabilities * weights))
    number = tokens.sums(weights) * len(router_logits)
    shares, means = (torch.stack(sums).sum(0) / number for sums in (counts, totals))
    return shares.shape[-1] * (shares * means).sum(-1)


@dataclass(frozen=True)
class _Router:
    """The module that returns a layer's router logits: its output, or the entry of it at ``index``."""

    module: nn.Module
    index: int


_ROUTERS: weakref.WeakKeyDictionary[nn.Module, tuple[_Router, ...]] = weakref.WeakKeyDictionary()
"""The routers of each model that was checked."""


@contextlib.contextmanager
def router_logits_of(inner: nn.Module, collected: list[Tensor]) -> Iterator[None]:
    """Collect the router logits of a model's forward pass.

    Args:
        inner: the causal language model without wrappers, after ``check_router_loss``.
        collected: list to which the pass appends one entry per layer with a router, before the head runs.

    Raises:
        SepoError: (in the pass) if they would have no gradient, or layers were left out.
    """
    decoder, routers = _decoder(inner), _ROUTERS[inner]
    own = decoder.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        layers = list(filter(runs_without_graph, decoder.modules())) if torch.is_grad_enabled() else []
        rest = list(routers)
        with contextlib.ExitStack() as stack:
            for layer in layers:
                parts = set(layer.modules())
                inside = [router for router in routers if router.module in parts]
                rest = [router for router in rest if router not in inside]
                if inside and not is_torch_reentrant(layer):
                    raise SepoError(
                        "the layers are checkpointed by another function than torch's, under which router logits have "
                        f"no gradient: remove use_unsloth_gc, or {_REMOVE}."
                    )
                if inside:
                    recording = functools.partial(_recorded, inside)
                    stack.enter_context(handing_out(layer, recording, number=len(inside), into=collected))
            stack.enter_context(_recorded(rest, collected))
            outputs = own(*args, **kwargs)
        if len(collected) != len(routers):
            raise SepoError(
                f"{len(collected)} of the {len(routers)} routers of {type(inner).__name__} ran: {_REMOVE}, and please "
                "report the model."
            )
        return outputs

    with exchanged(decoder, forward):
        yield


@contextlib.contextmanager
def _recorded(routers: Sequence[_Router], into: list[Tensor]) -> Iterator[None]:
    """Append the logits that routers return to a list."""

    def hook(router: _Router, module: nn.Module, args: Any, output: Any) -> None:
        into.append(output[router.index] if isinstance(output, tuple) else output)

    handles = [router.module.register_forward_hook(functools.partial(hook, router)) for router in routers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def experts_per_token(inner: Any) -> int:
    """Return the number of experts that each token of a model is routed to.

    Raises:
        SepoError: if neither the model nor its configuration has it.
    """
    config = getattr(inner, "config", None)
    for owner in (inner, config, getattr(config, "text_config", None)):
        for name in ("num_experts_per_tok", "moe_k"):
            number = getattr(owner, name, None)
            if isinstance(number, int):
                return number
    raise SepoError(no_router_loss(type(inner).__name__, "does not declare num_experts_per_tok"))


def no_router_loss(name: str, reason: str) -> str:
    """Return the message for a model whose router loss cannot be computed."""
    return f"{name} {reason}, so it has no load-balancing loss: {_REMOVE}."


def refusal_by_config(config: Any) -> str | None:
    """Return why a model has no load-balancing loss, by its configuration; None if it declares router logits.

    Args:
        config: a transformers configuration.
    """
    text = getattr(config, "text_config", None)
    if any(hasattr(owner, "output_router_logits") for owner in (config, text) if owner is not None):
        return None
    reason = "has no experts" if _experts(config) is None else "returns no router logits in transformers"
    return no_router_loss(f"a model of the type {getattr(config, 'model_type', '?')}", reason)


def _experts(config: Any) -> int | None:
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return next((getattr(config, name) for name in names if getattr(config, name, None)), None)


def without_own_loss(inner: Any) -> list[tuple[Any, str, bool]]:
    """Return the settings that make a model compute its own router loss, with the value that disables it.

    The pass would compute it over padded rows, and hold the router logits of all layers.
    """
    config = getattr(inner, "config", None)
    owners = (config, getattr(config, "text_config", None))
    return [(owner, "output_router_logits", False) for owner in owners if getattr(owner, "output_router_logits", False)]


def check_router_loss(model: nn.Module, inner: Any, head: Any, inputs: Mapping[str, Any]) -> None:
    """Find a model's routers, and compare the loss of this module with the model's own, once, on tokens of a batch.

    Args:
        model: the wrapped model.
        inner: the causal language model inside it.
        head: its output embedding.
        inputs: the padded batch.

    Raises:
        SepoError: if the model computes no such loss, or another one.
    """
    if inner in _ROUTERS:
        return
    reason = refusal_by_config(getattr(inner, "config", None))
    if reason is not None:
        raise SepoError(reason)
    mask = inputs.get("attention_mask")
    row = inputs["input_ids"][0] if mask is None else inputs["input_ids"][0][mask[0] != 0]
    ids = row[:_PROBE_TOKENS][None]
    own, routers, expected = _own_loss(model, inner, head, ids)
    tokens = PairTokens(torch.ones(ids.numel(), device=ids.device), (ids.numel(),), 1)
    found = pair_losses(own, tokens, top_k=experts_per_token(inner)).item()
    half = any(each.dtype in (torch.bfloat16, torch.float16) for each in (*own, expected))
    if not abs(found - expected.item()) <= (0.05 if half else 1e-3) * abs(expected.item()):
        raise SepoError(
            f"the router loss of {type(inner).__name__} is {expected.item():.6g} on the first tokens, expected the "
            f"{found:.6g} of the formula that sepo supports (Mixtral's load-balancing loss): {_REMOVE}, and please "
            "report the model."
        )
    _ROUTERS[inner] = routers


def _own_loss(
    model: nn.Module, inner: Any, head: Any, ids: Tensor
) -> tuple[Sequence[Tensor], tuple[_Router, ...], Tensor]:
    """Run tokens [1, T] with the model's own loss; return its router logits, the modules that returned them, and it."""
    decoder = _decoder(inner)
    forward = decoder.forward
    outputs: dict[int, tuple[_Router, Tensor]] = {}
    logits: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        for index, value in enumerate(output if isinstance(output, tuple) else (output,)):
            if isinstance(value, Tensor):
                outputs.setdefault(id(value), (_Router(module, index), value))

    def run(*args: Any, **kwargs: Any) -> Any:
        handles = [module.register_forward_hook(keep) for module in decoder.modules() if module is not decoder]
        try:
            result = forward(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        logits.extend(each for each in getattr(result, "router_logits", None) or () if isinstance(each, Tensor))
        return result

    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with (
        torch.no_grad(),
        in_evaluation_mode(model),
        exchanged(head, lambda hidden, *args, **kwargs: hidden[..., :1]),
        exchanged(decoder, run),
    ):
        output = model(**inputs, use_cache=False, return_dict=True, output_router_logits=True)
    expected = getattr(output, "aux_loss", None)
    if not logits or not isinstance(expected, Tensor):
        raise SepoError(no_router_loss(type(inner).__name__, "returns no router logits"))
    if not all(id(each) in outputs for each in logits):
        raise SepoError(no_router_loss(type(inner).__name__, "returns router logits that no module returned"))
    return logits, tuple(outputs[id(each)][0] for each in logits), expected


def _decoder(inner: Any) -> Any:
    get_decoder = getattr(inner, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else None
    if not isinstance(decoder, nn.Module) or decoder is inner:
        raise SepoError(no_router_loss(type(inner).__name__, "has no decoder that returns router logits"))
    return decoder
