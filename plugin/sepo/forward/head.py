"""The policy's own forward pass, with its head replaced by the chunked log-probability function.

The *wrapped* model (DDP, DeepSpeed, FSDP) is called, so that its hooks gather weights and synchronize gradients;
calling an inner module instead is silently wrong under DDP and fails under FSDP2.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sepo.errors import SepoError
from sepo.forward.chunked import (
    IDENTITY,
    LogitTransform,
    default_chunk_tokens,
    token_log_probs,
    token_log_probs_by_module,
)
from sepo.forward.evaluation_mode import in_evaluation_mode
from sepo.forward.exchange import exchanged
from sepo.forward.last_layer import last_mlp_only_at
from sepo.forward.router_loss import (
    check_router_loss,
    experts_per_token,
    pair_losses,
    pair_tokens,
    router_logits_of,
    without_own_loss,
)
from sepo.forward.shared_prompt import PairLayout, row_inputs

_CHECKED: weakref.WeakKeyDictionary[nn.Module, tuple[tuple[str, object], ...]] = weakref.WeakKeyDictionary()
"""Models that were verified not to change the head's output, with the settings at that time."""


def causal_lm(model: nn.Module) -> nn.Module:
    """Return the causal language model inside wrappers (DDP, DeepSpeed, torch.compile, PEFT)."""
    while True:
        inner = getattr(model, "_orig_mod", None) or model.__dict__.get("_modules", {}).get("module")
        if not isinstance(inner, nn.Module):
            break
        model = inner
    get_base = getattr(model, "get_base_model", None)
    return get_base() if callable(get_base) else model


_SOFTCAPS = (
    ("final_logit_softcapping", None),  # Gemma 2
    ("output_logit_soft_cap", None),  # xLSTM
    ("logits_soft_cap", 2.0**100),  # RecurrentGemma applies it always; a power of two rounds nothing
)
"""Settings with the cap of ``cap * tanh(logits / cap)``, and the value without effect."""


_Known = tuple[LogitTransform, list[tuple[Any, str, float | None]]]

_MEASURED: weakref.WeakKeyDictionary[nn.Module, tuple[list[LogitTransform], int]] = weakref.WeakKeyDictionary()
"""Models whose transform was measured: the possible ones at that time, and the place of the one among these."""


def known_transforms(model: nn.Module) -> _Known:
    """Return the usual transform of a model's logits after the head, and how to disable it: (owner, attribute,
    neutral)."""
    return _possible_transforms(model)[0]


def _possible_transforms(model: nn.Module) -> list[_Known]:
    """Return what the settings of a model can mean, the usual transform first.

    The name alone does not tell: ``logits_scaling`` divides the logits of Granite, multiplies those of HyperCLOVA X,
    and divides the hidden states of MiniCPM3 before the head, where it is no transform of the logits.
    """
    config = getattr(model, "config", None)
    text_config = getattr(config, "text_config", None) or config
    settings: list[tuple[Any, str, float | None]] = []
    effects: list[list[LogitTransform]] = []
    for name, neutral in _SOFTCAPS:
        cap = getattr(text_config, name, None)
        if cap is not None:
            settings.append((text_config, name, neutral))
            effects.append([LogitTransform(softcap=float(cap)), IDENTITY])
    factors = (
        (model, "logit_scale", 1),  # Cohere
        (text_config, "logits_scaling", -1),  # Granite
        (getattr(model, "base_model", None), "lm_head_multiplier", 1),  # Falcon-H1
    )
    for owner, name, power in factors:
        factor = getattr(owner, name, None)
        if isinstance(factor, int | float) and factor != 1:
            settings.append((owner, name, 1.0))
            effects.append([*(LogitTransform(scale=float(factor) ** sign) for sign in (power, -power)), IDENTITY])
    possible = []
    for chosen in itertools.product(*effects):
        caps = [effect.softcap for effect in chosen if effect.softcap is not None]
        transform = LogitTransform(
            scale=math.prod(effect.scale for effect in chosen), softcap=caps[0] if caps else None
        )
        in_use = [setting for setting, effect in zip(settings, chosen, strict=True) if effect != IDENTITY]
        possible.append((transform, in_use))
    return possible


def _transform_of(model: nn.Module, inner: nn.Module, head: nn.Module, input_ids: Tensor) -> _Known:
    """Return a model's transform of its logits after the head, and how to disable it.

    If its settings can mean one, it is measured once: the model runs on the first two tokens of a batch's rows, with a
    head that returns the same few numbers for each.

    Raises:
        SepoError: if the model does to its logits what none of its settings can mean.
    """
    possible = _possible_transforms(inner)
    if len(possible) == 1:
        return possible[0]
    transforms = [transform for transform, _ in possible]
    measured = _MEASURED.get(inner)
    if measured is None or measured[0] != transforms:
        values = torch.tensor([-30.0, -1 / 3, 1 / 3, 30.0], device=input_ids.device)
        ids = input_ids[:, :2]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        eager: Any = getattr(model, "_orig_mod", model)  # a compiled model would be compiled for this length
        with (
            torch.no_grad(),
            in_evaluation_mode(model),
            exchanged(head, lambda hidden, *args, **kwargs: values.expand(*hidden.shape[:-1], -1)),
            _switched_off(without_own_loss(inner)),
        ):
            arrived = eager(**inputs, use_cache=False, return_dict=True).logits[0, -1].to(values)
        differences = [((transform(values) - arrived) / arrived).abs().max().item() for transform in transforms]
        best = min(range(len(possible)), key=differences.__getitem__)
        if not differences[best] < _HALF_PRECISION:
            raise _unsupported(inner)
        measured = _MEASURED[inner] = (transforms, best)
    return possible[measured[1]]


_HALF_PRECISION = 0.02
"""Largest relative difference of a measured transform: a wrapper can round the outputs to bfloat16."""


@contextlib.contextmanager
def _switched_off(switches: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Disable a model's transform of its logits after the head for one call.

    Configs with typed fields check what is assigned to them, and a cap may have no type for none: it is assigned past
    that check.
    """
    # a config may keep a setting under a name of its own
    places = [(owner, getattr(owner, "attribute_map", {}).get(name, name)) for owner, name, _ in switches]
    saved = [getattr(owner, name) for owner, name in places]
    try:
        for (owner, name), (_, _, neutral) in zip(places, switches, strict=True):
            object.__setattr__(owner, name, neutral)
        yield
    finally:
        for (owner, name), value in zip(places, saved, strict=True):
            object.__setattr__(owner, name, value)


@dataclass(frozen=True)
class Head:
    """A model's language-model head, in its state during the model's forward pass.

    Args:
        module: the output embedding.
        forward: its own forward, [n, H] to [n, V].
        plain: whether that forward only applies ``weight`` and ``bias``.
        transform: the model's transform of its logits after the head.
        resident: data pointers of the head's parameters outside the forward pass. An engine that shards the weights
            replaces them for the duration of the pass.
    """

    module: Any
    forward: Callable[[Tensor], Tensor]
    plain: bool
    transform: LogitTransform
    resident: Mapping[str, int | None]

    @property
    def vocabulary(self) -> int:
        """Logits per token; an upper estimate if the head does not have ``out_features``."""
        return int(getattr(self.module, "out_features", 1 << 18))

    def log_probs(self, states: Tensor, targets: Tensor, *, chunk_tokens: int | None) -> Tensor:
        """Compute the log-probabilities [N] of ``targets`` [N] from hidden states [N, H]."""
        transform = self.transform
        if self.plain:
            weight, bias = self.module.weight, self.module.bias
            return token_log_probs(states, weight, targets, bias=bias, chunk_tokens=chunk_tokens, transform=transform)
        chunk = default_chunk_tokens(self.vocabulary) if chunk_tokens is None else chunk_tokens
        return token_log_probs_by_module(states, self.forward, targets, chunk_tokens=chunk, transform=transform)


def _is_plain_linear(head: nn.Module) -> bool:
    # Subclasses (layers of bitsandbytes and PEFT) override forward, and so does a head with accelerate's hooks.
    return type(head) is nn.Linear and "forward" not in head.__dict__


def storage_pointer(parameter: Tensor) -> int | None:
    """Return the data pointer of a parameter; None for FSDP's sharded parameters, which have no single one."""
    return None if hasattr(parameter, "to_local") else parameter.data_ptr()


def _head_module(inner: nn.Module) -> Any:
    get_head: Any = getattr(inner, "get_output_embeddings", None)
    module: Any = get_head() if callable(get_head) else None
    if module is None:
        raise SepoError(f"{type(inner).__name__} has no language-model head, expected a causal language model.")
    return module


def _head_of(module: Any, transform: LogitTransform) -> Head:
    resident = {name: storage_pointer(parameter) for name, parameter in module.named_parameters()}
    return Head(module, module.forward, _is_plain_linear(module), transform, resident)


def run_through_head(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    labels: Tensor,
    wanted: Tensor,
    compute: Callable[[Head, Tensor, Tensor], tuple[Tensor, ...]],
    layout: PairLayout | None = None,
    router_loss: bool = False,
) -> tuple[Tensor, ...]:
    """Run a model's own forward with ``compute`` in place of its head.

    Args:
        model: a causal language model, wrapped or not.
        inputs: the model's inputs (``input_ids`` [B, T], ``attention_mask``, ...), without labels.
        labels: token ids, [B, T], unshifted: entry t is the token at position t.
        wanted: bool, [B, T - 1], shifted: entry t requests the values of the token at position t + 1.
        compute: takes the head, the hidden states [N, H] and the token ids [N] of the wanted positions, in row order,
            and returns one or more differentiable [N]. It runs inside the wrapped forward, while engines have the
            weights gathered; its results are returned by the model as logits.
        layout: from ``sharing.layout_for``, to run the batch's pairs as one row without padding, each prompt once.
        router_loss: whether to compute the load-balancing loss of each pair (see ``router_loss``); the layout must then
            have all attended tokens (``batch_layout(..., whole=True)``).

    Returns:
        The results of ``compute``, each as [B, T - 1], exactly 0 where not wanted; with ``router_loss`` followed by the
        losses of the pairs, [B / 2].

    Raises:
        SepoError: if the model changes its logits after the head in an unsupported way, has no head, or runs it on
            other positions than the batch's; with ``router_loss`` if the model has none.
    """
    inner = causal_lm(model)
    module = _head_module(inner)
    transform, switches = _transform_of(model, inner, module, inputs["input_ids"])
    switches = [*switches, *without_own_loss(inner)]
    head = _head_of(module, transform)
    if router_loss:
        check_router_loss(model, inner, head.module, inputs)
    by_pair = pair_tokens(inputs, layout) if router_loss else None
    state = _scalars(inner)
    check = _CHECKED.get(inner) != state
    rows, columns = wanted.nonzero(as_tuple=True)
    targets = labels[:, 1:][rows, columns]
    shape = labels.shape
    at: tuple[Tensor, Tensor] = (rows, columns)
    if layout is not None:
        at = (torch.zeros_like(rows), layout.placed[rows, columns])
        inputs, shape = row_inputs(inputs["input_ids"], layout), torch.Size([1, layout.tokens])
    computed: list[tuple[Tensor, ...]] = []
    routers: list[Tensor] = []  # filled by the decoder, which runs before the head

    def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if hidden.shape[:2] != shape:
            raise SepoError(
                f"the head of {type(inner).__name__} got hidden states for {list(hidden.shape[:2])} positions, "
                f"expected the batch's {list(shape)}: disable prompt tuning and DataParallel; without them, the model "
                "is not supported."
            )
        values = compute(head, hidden[at], targets)
        if by_pair is not None:
            values = (*values, pair_losses(routers, by_pair, top_k=experts_per_token(inner)).to(values[0]))
        computed.append(values)
        outputs = torch.cat([*values, _probe(values[0])] if check else values)
        return outputs.view(1, -1, 1)

    # Layers share compiled code: a layer with another MLP would be compiled separately, for every shape.
    # The last layer's router reads all tokens.
    unchanged = layout is None or router_loss or hasattr(model, "_orig_mod")
    last_mlp = contextlib.nullcontext() if unchanged else last_mlp_only_at(inner, at, shape)
    collecting = router_logits_of(inner, routers) if router_loss else contextlib.nullcontext()
    with last_mlp, collecting, exchanged(head.module, forward), _switched_off(switches):
        output = model(**inputs, use_cache=False, return_dict=True).logits
    if check:
        _check_untouched(inner, output, computed)
        _CHECKED[inner] = state
    (exact,) = computed
    sizes = [value.numel() for value in exact]
    arrived = output.reshape(-1)[: sum(sizes)].split(sizes)
    values = [_exact(value, output) for value, output in zip(exact, arrived, strict=True)]
    per_pair = [values.pop()] if router_loss else []
    return tuple(_placed(value, wanted, (rows, columns)) for value in values) + tuple(per_pair)


def _exact(exact: Tensor, arrived: Tensor) -> Tensor:
    """Return the computed values with the gradient of the model's outputs.

    FSDP2's mixed precision casts the model's outputs to bfloat16: the gradient must flow through them, but the values
    need not.
    """
    arrived = arrived.to(exact)
    return arrived + (exact.detach() - arrived.detach())


def _placed(values: Tensor, wanted: Tensor, index: tuple[Tensor, ...]) -> Tensor:
    """Return [B, T - 1] with the values at the wanted positions."""
    return torch.zeros(wanted.shape, dtype=values.dtype, device=values.device).index_put(index, values)


def selected_log_probs(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    labels: Tensor,
    wanted: Tensor,
    chunk_tokens: int | None = None,
    layout: PairLayout | None = None,
) -> Tensor:
    """Compute per-token log-probabilities at the wanted positions; the head runs at these positions only.

    Args:
        model: a causal language model, wrapped or not.
        inputs: the model's inputs (``input_ids`` [B, T], ``attention_mask``, ...), without labels.
        labels: token ids, [B, T], unshifted: entry t is the token at position t.
        wanted: bool, [B, T - 1], shifted: entry t requests the log-probability of the token at position t + 1.
        chunk_tokens: number of tokens whose logits exist at a time; None for 64 MiB of logits.
        layout: see ``run_through_head``.

    Returns:
        per_token_logps in nats, float32 (float64 for a float64 model), [B, T - 1]; exactly 0 where not wanted.

    Raises:
        SepoError: see ``run_through_head``.
    """

    def compute(head: Head, states: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        return (head.log_probs(states, targets, chunk_tokens=chunk_tokens),)

    (logps,) = run_through_head(model, inputs, labels=labels, wanted=wanted, compute=compute, layout=layout)
    return logps


def _scalars(model: nn.Module) -> tuple[tuple[str, object], ...]:
    """Return the scalar settings of a model and its config, on which a transform after the head can depend."""
    return tuple(
        (name, value)
        for owner in (model, getattr(model, "config", None))
        for name, value in getattr(owner, "__dict__", {}).items()
        if isinstance(value, int | float | str | None)
    )


def _probe(like: Tensor) -> Tensor:
    # Both signs, small and large, to detect scales, shifts, caps and clamps; within float16, with room for a scale.
    return torch.tensor([-20000.0, -30.0, -1 / 3, 0.0, 1 / 3, 30.0, 20000.0], device=like.device).to(like.dtype)


def _check_untouched(model: nn.Module, output: Tensor, computed: list[tuple[Tensor, ...]]) -> None:
    """Raise if an unknown transform follows the head: the model's output must be what the replaced head returned.

    The head appended a few probe numbers to its values for this; they must be returned unchanged, or rounded to half
    precision.
    """
    if len(computed) == 1:
        (values,) = computed
        probe = _probe(values[0])
        arrived = output.detach().reshape(-1)[sum(value.numel() for value in values) :].to(probe)
        half = (torch.bfloat16, torch.float16)
        if any(torch.equal(arrived, expected) for expected in (probe, *(probe.to(d).to(probe) for d in half))):
            return
    raise _unsupported(model)


def _unsupported(model: nn.Module) -> SepoError:
    return SepoError(
        f"{type(model).__name__} changes its logits after the head in an unsupported way, so exact log-probabilities "
        "cannot be computed from its hidden states. Supported: final_logit_softcapping, logit_scale, logits_scaling, "
        "lm_head_multiplier. Please report the model."
    )
