"""Comparison of both layouts of pairs, a row and a padded batch, on tokens of a model's first batch.

Two probes are run. One has short pairs, in which a wrong position or a wrong neighbor changes most log-probabilities.
The other has the length of the batch's pairs, and exceeds the model's sliding window and the length at which its rotary
embedding changes, if the batch is large enough for that.

In half precision, rounding alone changes log-probabilities by as much as some errors do, so that the tolerance is
measured: the padded batch holds every sequence twice, once with each embedding changed by one unit in the last place.
Both layouts round differently in the attention and in layers with a state only, and differ less than these two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sepo.forward.attention import UnknownAttentionError
from sepo.forward.chunked import matmul_dtype
from sepo.forward.evaluation_mode import in_evaluation_mode
from sepo.forward.exchange import exchanged
from sepo.forward.head import Head, run_through_head
from sepo.forward.shared_prompt import PairLayout, pair_layout
from sepo.forward.state_layers import UnknownStateLayerError, state_layers

WITHOUT_ATTENTION = frozenset({"linear_attention", "mamba", "moe", "mlp"})
"""Types of layers without attention, in models with a state."""

_SHORT = (4, 16)
"""Pairs of the short probe, and tokens of their sequences."""
_LONGEST = 512
"""Maximum tokens of a sequence in the long probe, unless the model's configuration requires more."""
_SHARE = 1 / 5
"""Tokens of a sequence in the long probe, as a share of the batch's: its passes have 5.5 times as many tokens, which is
1.6% of 20 steps of 3.5 passes each."""
_ALWAYS = 64
"""Tokens of a sequence that no batch is too small for."""
_COMPARED = 64
"""Maximum number of tokens of each response that are compared."""
_TIMES_ROUNDING, _LEAST = 3.0, 1e-4
"""The tolerance: a multiple of the difference that rounding makes, and nats."""


def difference(model: nn.Module, inner: nn.Module, input_ids: Tensor, layout: PairLayout) -> str | None:
    """Run both layouts on tokens of a batch; return why they differ, or None.

    Args:
        model: a causal language model, wrapped or not, that attends pair by pair.
        inner: the model without wrappers.
        input_ids: token ids of the batch, [2B, T].
        layout: the layout of the batch.
    """
    model = getattr(model, "_orig_mod", model)  # nothing is compiled for the lengths and the embedding of a probe
    tokens = input_ids.flatten()[layout.source]
    switches = list(_switches(inner))
    for pairs, length in (_SHORT, (1, probe_length(inner, layout))):
        if length - 1 in switches:  # only one of the layouts would cross it: the row has no last tokens
            length += 1
        reason = _compared(model, inner, *_pairs_of(tokens, pairs, length))
        if reason is not None:
            return reason
    return None


def probe_length(inner: nn.Module, layout: PairLayout) -> int:
    """Return the tokens of a sequence in the long probe.

    Args:
        inner: the model without wrappers.
        layout: the layout of the batch.
    """
    # A batch without wanted tokens has one token of each sequence.
    longest = max(2, *(span.shared + max(span.chosen, span.rejected) for span in layout.spans))
    share = max(_ALWAYS, int(layout.tokens * _SHARE))
    length = min(longest, share, _LONGEST)
    window = getattr(getattr(inner, "config", None), "sliding_window", None)
    needed = [window + max(8, window // 4)] if isinstance(window, int) else []
    # Sequences within the switch in a row beyond it: beyond it, too, both layouts would have the same frequencies.
    needed += [2 * switch // 3 + 8 for switch in _switches(inner) if switch >= 24]
    return max([length, *(tokens for tokens in needed if tokens <= max(share, longest))])


def _switches(inner: nn.Module) -> Iterator[int]:
    """Yield the lengths at which a model's rotary embedding changes its frequencies."""
    config: Any = getattr(inner, "config", None)
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for one in (parameters, *parameters.values()):
        if isinstance(one, Mapping) and one.get("rope_type", one.get("type")) in ("dynamic", "longrope"):
            for length in (
                one.get("original_max_position_embeddings"),
                getattr(config, "original_max_position_embeddings", None),
                getattr(config, "max_position_embeddings", None),
            ):
                if isinstance(length, int):
                    yield length
                    break


def _pairs_of(tokens: Tensor, pairs: int, length: int) -> tuple[Tensor, Tensor]:
    """Return pairs [2B, T] of a batch's tokens, whose responses are half of a sequence, and their wanted positions."""
    shared = length // 2
    places = torch.arange(pairs * length, device=tokens.device) % len(tokens)
    chosen, rejected = (run[places].view(pairs, length) for run in (tokens, tokens.flip(0)))
    ids = torch.cat([chosen, torch.cat([chosen[:, :shared], rejected[:, shared:]], 1)])
    wanted = torch.zeros(2 * pairs, length - 1, dtype=torch.bool, device=tokens.device)
    wanted[:, torch.linspace(shared - 1, length - 2, min(_COMPARED, length - shared)).round().long()] = True
    return ids, wanted


def _compared(model: nn.Module, inner: nn.Module, ids: Tensor, wanted: Tensor) -> str | None:
    """Run pairs [2B, T] in both layouts; return why they differ, or None."""
    name, rows = type(inner).__name__, len(ids)
    row = pair_layout(ids.cpu(), wanted.cpu()).to(ids.device)
    with_state, config = len(state_layers(inner)), getattr(inner, "config", None)
    layers = _attention_layers(config) if with_state else getattr(config, "num_hidden_layers", None)

    def log_probs(ids: Tensor, wanted: Tensor, layout: PairLayout | None = None) -> Tensor:
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        (values,) = run_through_head(model, inputs, labels=ids, wanted=wanted, compute=_log_probs, layout=layout)
        return values

    embeddings: Any = inner.get_input_embeddings()  # type: ignore[operator]
    with torch.no_grad(), in_evaluation_mode(model):
        with exchanged(embeddings, _second_half_rounded(embeddings.forward, inner)):
            padded, rounded = log_probs(torch.cat([ids, ids]), torch.cat([wanted, wanted])).split(rows)
        try:
            shared = log_probs(ids, wanted, row)
        except (UnknownAttentionError, UnknownStateLayerError) as error:
            return str(error)
    if row.carried != with_state:
        return f"{row.carried} of the {with_state} layers with a state of {name} carried it"
    if row.attended != layers:
        return f"{row.attended} of the {layers} layers of {name} used sepo's attention"
    rounding = _root_mean_square((rounded - padded)[wanted])
    sides = zip((padded - shared).split(rows // 2), wanted.split(rows // 2), strict=True)
    found = max(_root_mean_square(values[kept]) for values, kept in sides)
    if not found <= _TIMES_ROUNDING * rounding + _LEAST:
        return (
            f"{name} returns other log-probabilities for a row of pairs than for a batch (difference {found:.2g} nats "
            f"in sequences of {ids.shape[1]} tokens, {rounding:.2g} by rounding)"
        )
    return None


def _attention_layers(config: Any) -> int | None:
    """Return the number of layers with attention of a model with a state, or None if its config has no list of them."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    return None if kinds is None else sum(kind not in WITHOUT_ATTENTION for kind in kinds)


def _log_probs(head: Head, states: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    return (head.log_probs(states, targets, chunk_tokens=None),)


def _root_mean_square(values: Tensor) -> float:
    return values.double().square().mean().sqrt().item()


def _second_half_rounded(own: Callable[..., Tensor], inner: nn.Module) -> Callable[..., Tensor]:
    """Return the forward of an embedding that changes the second half of a batch by one unit in the last place."""
    dtypes = {weight.dtype for weight in inner.parameters()}
    wide = [dtype for dtype in dtypes if dtype.is_floating_point and dtype.itemsize > 1]

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        states = own(*args, **kwargs)
        unit = max(_unit(dtype, states.device) for dtype in (*wide, matmul_dtype(states)))
        generator = torch.Generator().manual_seed(0)  # the state of the global one belongs to the training
        first, second = states.split(len(states) // 2)
        signs = 2 * torch.randint(2, second.shape, generator=generator).to(second) - 1
        return torch.cat([first, second * (1 + unit * signs)])

    return forward


def _unit(dtype: torch.dtype, device: torch.device) -> float:
    """Return the relative precision of matrix products."""
    if dtype == torch.float32 and device.type == "cuda":
        matmul = torch.backends.cuda.matmul
        # `allow_tf32` can be read in older versions of torch only: it raises if the newer setting was used.
        exact = (
            matmul.fp32_precision in ("ieee", "none") if hasattr(matmul, "fp32_precision") else not matmul.allow_tf32
        )
        return torch.finfo(dtype).eps if exact else 2.0**-10
    return torch.finfo(dtype).eps
