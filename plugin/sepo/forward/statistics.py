"""Log-probabilities together with sums over the vocabulary, at wanted positions of a model's own forward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepo.errors import SepoError
from sepo.forward.chunked import (
    at_least_float32,
    default_chunk_tokens,
    matmul_dtype,
    token_statistics,
    token_statistics_by_module,
)
from sepo.forward.head import Head, run_through_head, storage_pointer
from sepo.forward.layout import PairLayout
from sepo.forward.vocabulary import ReferenceStates, TokenStatistics


def selected_statistics(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    labels: Tensor,
    wanted: Tensor,
    chunk_tokens: int | None = None,
    reference: ReferenceStates | None = None,
    with_p2: bool = False,
    layout: PairLayout | None = None,
) -> TokenStatistics:
    """``selected_log_probs`` together with sums over the vocabulary, from the same pass over the head.

    Args:
        model: a causal language model, wrapped or not.
        inputs: what its forward takes (``input_ids`` [B, T], ``attention_mask``, ...), without labels.
        labels: token ids, [B, T], unshifted.
        wanted: bool, [B, T - 1], shifted.
        chunk_tokens: tokens whose logits exist at a time; None for 64 MiB of logits, the reference's among them.
        reference: from ``reference_log_probs`` with the same ``wanted``; asks for KL(ref || policy).
        with_p2: asks for the log of the sum of squared probabilities.
        layout: see ``run_through_head``.

    Returns:
        The statistics, [B, T - 1] each, exactly 0 where not wanted.

    Raises:
        SepoError: see ``run_through_head``; or a reference with another vocabulary.
    """
    detached: list[Tensor] = []

    def compute(head: Head, states: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        statistics = _statistics(head, states, targets, chunk_tokens=chunk_tokens, reference=reference, with_p2=with_p2)
        if statistics.log_sum_p2 is not None:
            detached.append(statistics.log_sum_p2)
        return (statistics.logps,) if statistics.kl is None else (statistics.logps, statistics.kl)

    logps, *kl = run_through_head(model, inputs, labels=labels, wanted=wanted, compute=compute, layout=layout)
    return TokenStatistics(
        logps=logps,
        kl=kl[0] if kl else None,
        log_sum_p2=torch.zeros_like(logps).masked_scatter(wanted, detached[0]) if detached else None,
    )


def _statistics(
    head: Head,
    states: Tensor,
    targets: Tensor,
    *,
    chunk_tokens: int | None,
    reference: ReferenceStates | None,
    with_p2: bool,
) -> TokenStatistics:
    if head.plain:
        return token_statistics(
            states, head.module.weight, targets, bias=head.module.bias, chunk_tokens=chunk_tokens,
            transform=head.transform, reference=reference, with_p2=with_p2,
        )  # fmt: skip
    default = default_chunk_tokens(head.vocabulary, models=1 if reference is None else 2)
    return token_statistics_by_module(
        states, head.forward, targets, chunk_tokens=default if chunk_tokens is None else chunk_tokens,
        transform=head.transform, reference=reference, with_p2=with_p2,
    )  # fmt: skip


@torch.no_grad()
def reference_log_probs(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    labels: Tensor,
    wanted: Tensor,
    chunk_tokens: int | None = None,
    layout: PairLayout | None = None,
) -> tuple[Tensor, ReferenceStates]:
    """A reference's log-probabilities, and what its distributions over the vocabulary can be made from later.

    Later the model may no longer be in the state in which it is the reference (its adapter is on again, its weights are
    the policy's again, an engine has taken the gathered weights back). So its head is kept as it is during the pass:
    the same tensors where they stay; copies, for the length of the step, where an engine shards the head.

    Args:
        model: the reference, in the state in which it is one.
        inputs: as in ``selected_log_probs``.
        labels: token ids, [B, T], unshifted.
        wanted: bool, [B, T - 1], shifted.
        chunk_tokens: tokens whose logits exist at a time; None for 64 MiB of logits.
        layout: see ``run_through_head``.

    Returns:
        per_token_logps [B, T - 1] as ``selected_log_probs`` gives them, and the states at the wanted positions.

    Raises:
        SepoError: see ``run_through_head``; or a head that is no plain linear layer under an engine that shards it.
    """
    kept: list[ReferenceStates] = []

    def compute(head: Head, states: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        kept.append(ReferenceStates(hidden=states, logits=_kept_head(head, states)))
        return (head.log_probs(states, targets, chunk_tokens=chunk_tokens),)

    (logps,) = run_through_head(model, inputs, labels=labels, wanted=wanted, compute=compute, layout=layout)
    return logps, kept[0]


def _kept_head(head: Head, states: Tensor) -> Callable[[Tensor], Tensor]:
    """The head's logits as they are now, whatever becomes of the model that it belongs to."""
    if head.plain:
        return _kept_linear(head, matmul_dtype(states))
    return _kept_module(head, states.device.type)


def _stays(head: Head, name: str, parameter: Tensor) -> bool:
    """Whether a parameter lies where it lay outside the forward pass, so that no engine takes it back afterwards."""
    return head.resident[name] is not None and head.resident[name] == storage_pointer(parameter)


def _kept_linear(head: Head, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    kept = {
        # Detached, it is the tensor that the parameter holds now: StartingPolicy exchanges it, and changes none.
        name: parameter.detach().to(dtype, copy=not _stays(head, name, parameter))
        for name, parameter in head.module.named_parameters()
    }
    transform = head.transform

    def logits(states: Tensor) -> Tensor:
        # As in the policy's own pass: the operands already have the dtype in which the head ran.
        with torch.autocast(states.device.type, enabled=False):
            return transform(at_least_float32(F.linear(states.to(dtype), kept["weight"], kept.get("bias"))))

    return logits


def _kept_module(head: Head, device: str) -> Callable[[Tensor], Tensor]:
    """A copy of the module's structure over the same tensors: its adapters stay on or off as they are now."""
    same: dict[int, Any] = {id(buffer): buffer for buffer in head.module.buffers()}
    for name, parameter in head.module.named_parameters():
        if hasattr(parameter, "ds_id") or not _stays(head, name, parameter):
            raise SepoError(
                f"the reference's head is a {type(head.module).__name__} and this engine shards its weights, so they "
                "cannot be kept for a KL over the vocabulary: leave lm_head out of lora_target and additional_target, "
                "or train without ZeRO-3 and FSDP."
            )
        # Quantized parameters are frozen, and know more than their values.
        same[id(parameter)] = (
            nn.Parameter(parameter.detach(), requires_grad=False) if type(parameter) is nn.Parameter else parameter
        )
    forward = copy.deepcopy(head.forward, same)
    copied = same.get(id(head.module))  # none where its forward is no method of it
    if copied is not None:
        copied.eval()  # a reference has no dropout
        copied.__dict__.pop("forward", None)  # the one exchanged for this pass
    transform = head.transform
    autocast = torch.autocast(device, dtype=torch.get_autocast_dtype(device), enabled=torch.is_autocast_enabled(device))

    def logits(states: Tensor) -> Tensor:
        with autocast:  # the backward pass, which may ask again, runs outside the pass's own
            return transform(at_least_float32(forward(states)))

    return logits
