"""Log-probabilities and sums over the vocabulary, at wanted positions of a model's own forward pass."""

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
from sepo.forward.shared_prompt import PairLayout
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
    weigh: Callable[[Tensor], Tensor] | None = None,
    layout: PairLayout | None = None,
    router_loss: bool = False,
) -> TokenStatistics:
    """Compute ``selected_log_probs`` and sums over the vocabulary in the same pass over the head.

    Args:
        model: a causal language model, wrapped or not.
        inputs: the model's inputs (``input_ids`` [B, T], ``attention_mask``, ...), without labels.
        labels: token ids, [B, T], unshifted.
        wanted: bool, [B, T - 1], shifted.
        chunk_tokens: number of tokens whose logits exist at a time; None for 64 MiB of logits, including the
            reference's.
        reference: from ``reference_log_probs`` with the same ``wanted``; if given, KL(ref || policy) is computed.
        with_p2: whether to compute the log of the sum of squared probabilities.
        weigh: takes the hidden states [N, H] of the wanted positions before the head, in row order and without
            gradient, and returns one number each, [N]. The states are not kept.
        layout: see ``run_through_head``.
        router_loss: whether to compute the load-balancing loss of each pair, see ``run_through_head``.

    Returns:
        The statistics, [B, T - 1] each, exactly 0 where not wanted.

    Raises:
        SepoError: see ``run_through_head``; also if the reference has another vocabulary.
    """
    detached: dict[str, Tensor] = {}

    def compute(head: Head, states: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        if weigh is not None:
            with torch.no_grad():
                detached["weights"] = weigh(states.detach())
        statistics = _statistics(head, states, targets, chunk_tokens=chunk_tokens, reference=reference, with_p2=with_p2)
        if statistics.log_sum_p2 is not None:
            detached["log_sum_p2"] = statistics.log_sum_p2
        return (statistics.logps,) if statistics.kl is None else (statistics.logps, statistics.kl)

    logps, *more = run_through_head(
        model, inputs, labels=labels, wanted=wanted, compute=compute, layout=layout, router_loss=router_loss
    )
    placed = {
        name: torch.zeros(wanted.shape, dtype=values.dtype, device=values.device).masked_scatter(wanted, values)
        for name, values in detached.items()
    }
    return TokenStatistics(
        logps=logps,
        kl=more[0] if reference is not None else None,
        router_losses=more[-1] if router_loss else None,
        **placed,
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
    """Compute a reference's log-probabilities, and keep the states from which its distributions can be computed later.

    Later the model may no longer be in its state as the reference (its adapter is enabled again, its weights are the
    policy's again, an engine has released the gathered weights). Its head is therefore kept as it is during the pass:
    the same tensors if they stay in place; copies, for the duration of the step, if an engine shards the head.

    Args:
        model: the reference, in its state as the reference.
        inputs: as in ``selected_log_probs``.
        labels: token ids, [B, T], unshifted.
        wanted: bool, [B, T - 1], shifted.
        chunk_tokens: number of tokens whose logits exist at a time; None for 64 MiB of logits.
        layout: see ``run_through_head``.

    Returns:
        per_token_logps [B, T - 1] as from ``selected_log_probs``, and the states at the wanted positions.

    Raises:
        SepoError: see ``run_through_head``; also if an engine shards a head that is not a plain linear layer.
    """
    kept: list[ReferenceStates] = []

    def compute(head: Head, states: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        kept.append(ReferenceStates(hidden=states, logits=_kept_head(head, states)))
        return (head.log_probs(states, targets, chunk_tokens=chunk_tokens),)

    (logps,) = run_through_head(model, inputs, labels=labels, wanted=wanted, compute=compute, layout=layout)
    return logps, kept[0]


def _kept_head(head: Head, states: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function for the head's logits in its current state, independent of later changes of the model."""
    if head.plain:
        return _kept_linear(head, matmul_dtype(states))
    return _kept_module(head, states.device.type)


def _stays(head: Head, name: str, parameter: Tensor) -> bool:
    """Return whether a parameter has the same storage as outside the forward pass, so that no engine releases it."""
    return head.resident[name] is not None and head.resident[name] == storage_pointer(parameter)


def _kept_linear(head: Head, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    kept = {
        # Detached, it is the parameter's current tensor, which StartingPolicy replaces but does not change.
        name: parameter.detach().to(dtype, copy=not _stays(head, name, parameter))
        for name, parameter in head.module.named_parameters()
    }
    transform = head.transform

    def logits(states: Tensor) -> Tensor:
        # As in the policy's pass, the operands already have the dtype in which the head ran.
        with torch.autocast(states.device.type, enabled=False):
            return transform(at_least_float32(F.linear(states.to(dtype), kept["weight"], kept.get("bias"))))

    return logits


def _kept_module(head: Head, device: str) -> Callable[[Tensor], Tensor]:
    """Copy the module's structure over the same tensors, which keeps its adapters enabled or disabled as they are."""
    same: dict[int, Any] = {id(buffer): buffer for buffer in head.module.buffers()}
    for name, parameter in head.module.named_parameters():
        if hasattr(parameter, "ds_id") or not _stays(head, name, parameter):
            raise SepoError(
                f"the reference's head is a {type(head.module).__name__} whose weights are sharded, so they cannot be "
                "kept for a KL over the vocabulary: leave lm_head out of lora_target and additional_target, or train "
                "without ZeRO-3 and FSDP."
            )
        # Quantized parameters are frozen, and have state besides their values.
        same[id(parameter)] = (
            nn.Parameter(parameter.detach(), requires_grad=False) if type(parameter) is nn.Parameter else parameter
        )
    forward = copy.deepcopy(head.forward, same)
    copied = same.get(id(head.module))  # None if its forward is not one of its methods
    if copied is not None:
        copied.eval()  # a reference has no dropout
        copied.__dict__.pop("forward", None)  # the replacement during this pass
    transform = head.transform
    autocast = torch.autocast(device, dtype=torch.get_autocast_dtype(device), enabled=torch.is_autocast_enabled(device))

    def logits(states: Tensor) -> Tensor:
        with autocast:  # the backward pass, which may call this again, runs outside the forward pass's context
            return transform(at_least_float32(forward(states)))

    return logits
