"""Log-probabilities of target tokens from hidden states, in chunks, with a custom backward pass.

Slow twin: ``torch.log_softmax(head(hidden).float(), -1).gather(-1, targets)``, which keeps tokens x vocabulary
float32 logits for the backward pass. Here no tensor of that size outlives one chunk. Sums over the whole vocabulary
that an objective needs, KL(ref || policy) and the sum of squared probabilities, are computed from the same logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from sepo.errors import SepoError
from sepo.forward.vocabulary import ReferenceStates, TokenStatistics, kl_divergence, kl_gradient, log_sum_p2

_CHUNK_LOGITS = 1 << 24
"""Default number of logits per chunk: 64 MiB in float32 for any vocabulary."""


@dataclass(frozen=True)
class LogitTransform:
    """The transform of a model's logits after the head: ``softcap * tanh(scale * x / softcap)``.

    Args:
        scale: factor on the raw logits (Cohere's ``logit_scale``, the inverse of Granite's ``logits_scaling``).
        softcap: Gemma 2's ``final_logit_softcapping``, or None.
    """

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Apply the transform to float32 logits of any shape."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def at_temperature(self, temperature: float) -> LogitTransform:
        """Return the transform followed by a division by ``temperature``, from which tokens are sampled."""
        if temperature == 1.0:
            return self
        cap = None if self.softcap is None else self.softcap / temperature
        return LogitTransform(scale=self.scale / temperature, softcap=cap)

    def derivative(self, transformed: Tensor) -> Tensor | float:
        """Return the derivative of the transform, as a function of its output."""
        if self.softcap is None:
            return self.scale
        return (1.0 - (transformed / self.softcap).square()) * self.scale


IDENTITY = LogitTransform()


def default_chunk_tokens(vocabulary: int, *, models: int = 1) -> int:
    """Return the tokens per chunk for which the float32 logits of a chunk, over all models, take 64 MiB."""
    return max(1, _CHUNK_LOGITS // max(1, vocabulary * models))


def _checked(chunk_tokens: int) -> int:
    if chunk_tokens < 1:
        raise SepoError(
            f"chunk_tokens is {chunk_tokens}, expected at least 1: leave it out for the default of 64 MiB of logits."
        )
    return chunk_tokens


def matmul_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype in which the head would run here: that of autocast if enabled, else of the hidden states."""
    device = hidden.device.type
    if hidden.dtype == torch.float64 or not torch.is_autocast_enabled(device):  # autocast does not cast float64
        return hidden.dtype
    return torch.get_autocast_dtype(device)


def at_least_float32(logits: Tensor) -> Tensor:
    """Cast logits to float32, unless they are float64."""
    return logits if logits.dtype == torch.float64 else logits.float()


class _TokenStatistics(torch.autograd.Function):
    """log softmax(transform(hidden W^T + b))[target] and, if requested, sums over the vocabulary; one scalar per token.

    The gradient of such a scalar with respect to a hidden state is (upstream scalar) x (a vector that is available in
    the forward pass): d logp / d h = sum_v (1[v = y] - p_v) transform'(z_v) W_v, and d KL / d h the same with p_v -
    q_v. With a frozen head the forward pass therefore keeps that vector, [N, H], and the backward pass is one
    multiplication: no recomputation, no weight gradient. With a trainable head the chunk's logits are recomputed in the
    backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunk_tokens: int,
        transform: LogitTransform,
        reference: ReferenceStates | None,
        with_p2: bool,
    ) -> tuple[Tensor, ...]:
        dtype = matmul_dtype(hidden)
        hidden_trains, weight_trains, bias_trains = ctx.needs_input_grad[:3]
        head_trains = weight_trains or bias_trains
        keep_direction = hidden_trains and not head_trains
        cast_weight = weight.to(dtype)
        logps = torch.empty(
            hidden.shape[0], dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device
        )
        kl = torch.empty_like(logps) if reference is not None else None
        p2 = torch.empty_like(logps) if with_p2 else None
        directions = [torch.empty_like(hidden) for values in (logps, kl) if keep_direction and values is not None]
        for start in range(0, hidden.shape[0], chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            logits, log_norm = _chunk_logits(hidden[rows].to(dtype), cast_weight, bias, transform)
            logps[rows] = _gather(logits, targets[rows]) - log_norm
            if p2 is not None:
                p2[rows] = log_sum_p2(logits, log_norm)
            log_q = None if reference is None else reference.log_probs(rows, vocabulary=logits.shape[-1])
            if kl is not None and log_q is not None:
                kl[rows] = kl_divergence(log_q, logits, log_norm)
            if directions:
                slopes = _logit_gradients(logits, log_norm, targets[rows], transform, log_q)
                for direction, slope in zip(directions, slopes, strict=True):
                    direction[rows] = (slope.to(dtype) @ cast_weight).to(hidden.dtype)
        ctx.chunk_tokens, ctx.transform, ctx.dtype = chunk_tokens, transform, dtype
        ctx.with_kl = reference is not None
        if keep_direction:
            ctx.save_for_backward(*directions)
        elif head_trains:
            ctx.save_for_backward(hidden, weight, bias, targets)
            ctx.reference = reference
        ctx.kept_direction = keep_direction
        if p2 is not None:
            ctx.mark_non_differentiable(p2)
        return tuple(values for values in (logps, kl, p2) if values is not None)

    @staticmethod
    @once_differentiable  # a second derivative would treat direction as a constant
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        upstreams = grads[: 1 + ctx.with_kl]  # log-probabilities, KL
        if not ctx.kept_direction:
            return *_head_gradients(ctx, upstreams), None, None, None, None, None
        directions = ctx.saved_tensors
        grad_hidden = _weighted_sum(directions, upstreams).to(directions[0].dtype)
        return grad_hidden, None, None, None, None, None, None, None


def _head_gradients(ctx: Any, upstreams: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Compute the gradients of hidden states, weight and bias for a trainable head."""
    hidden, weight, bias, targets = ctx.saved_tensors
    hidden_trains, weight_trains, bias_trains = ctx.needs_input_grad[:3]
    cast_weight = weight.to(ctx.dtype)
    wide = torch.promote_types(weight.dtype, torch.float32)  # the sum over chunks must not round to half precision
    grad_hidden = torch.zeros_like(hidden) if hidden_trains else None
    grad_weight = torch.zeros_like(weight, dtype=wide) if weight_trains else None
    grad_bias = torch.zeros_like(bias, dtype=wide) if bias_trains else None
    for start in range(0, hidden.shape[0], ctx.chunk_tokens):
        rows = slice(start, start + ctx.chunk_tokens)
        states = hidden[rows].to(ctx.dtype)
        logits, log_norm = _chunk_logits(states, cast_weight, bias, ctx.transform)
        log_q = ctx.reference.log_probs(rows, vocabulary=logits.shape[-1]) if ctx.with_kl else None
        slopes = _logit_gradients(logits, log_norm, targets[rows], ctx.transform, log_q)
        slope = _weighted_sum(slopes, [upstream[rows] for upstream in upstreams]).to(ctx.dtype)
        if grad_hidden is not None:
            grad_hidden[rows] = (slope @ cast_weight).to(hidden.dtype)
        if grad_weight is not None:
            grad_weight += (slope.T @ states).to(wide)
        if grad_bias is not None:
            grad_bias += slope.sum(0, dtype=wide)
    return (
        grad_hidden,
        None if grad_weight is None else grad_weight.to(weight.dtype),
        None if grad_bias is None else grad_bias.to(bias.dtype),
    )


def _weighted_sum(parts: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Return the sum of [n, K] parts, each row multiplied by its weight [n]."""
    weighted = [part * weight.unsqueeze(-1) for part, weight in zip(parts, weights, strict=True)]
    return sum(weighted[1:], weighted[0])


def _chunk_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: LogitTransform
) -> tuple[Tensor, Tensor]:
    """Return the transformed logits [n, V] and their log-sum-exp [n]."""
    bias = bias.to(hidden.dtype) if bias is not None else None
    # The operands already have the dtype in which the head runs; autocast would cast them again.
    with torch.autocast(hidden.device.type, enabled=False):
        logits = transform(at_least_float32(F.linear(hidden, weight, bias)))
    return logits, torch.logsumexp(logits, -1)


def _gather(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def _logit_gradients(
    logits: Tensor, log_norm: Tensor, targets: Tensor, transform: LogitTransform, log_q: Tensor | None
) -> list[Tensor]:
    """Return d log p(target) / d raw logits, [n, V], and d KL(q || p) / d raw logits if ``log_q`` is given.

    Overwrites ``logits`` and ``log_q``.
    """
    index = targets.unsqueeze(-1)
    derivative = transform.derivative(logits)
    kl_slope = None if log_q is None else kl_gradient(log_q, logits, log_norm).mul_(derivative)
    slope = logits.sub_(log_norm.unsqueeze(-1)).exp_().neg_()
    slope.scatter_add_(-1, index, torch.ones_like(index, dtype=slope.dtype))
    slope.mul_(derivative)
    return [slope] if kl_slope is None else [slope, kl_slope]


def token_statistics(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    chunk_tokens: int | None = None,
    transform: LogitTransform = IDENTITY,
    reference: ReferenceStates | None = None,
    with_p2: bool = False,
) -> TokenStatistics:
    """Compute the log-probability of each target token and sums over the vocabulary in one pass over a linear head.

    Args:
        hidden: the policy's hidden states before the head, [N, H], any floating dtype.
        weight: head weight, [V, H]; its gradient is computed only if it requires one.
        targets: token ids, [N].
        bias: head bias, [V], or None.
        chunk_tokens: number of tokens whose logits exist at a time; None for 64 MiB of float32 logits per chunk (with a
            reference, 64 MiB for both models together).
        transform: the model's transform of its logits after the head.
        reference: if given, KL(ref || policy) is computed; its hidden states belong to the same N tokens.
        with_p2: whether to compute log sum_v p_v^2.

    Returns:
        The statistics, [N] each, differentiable with respect to hidden states, weight and bias.

    Raises:
        SepoError: if a chunk has less than one token, or the reference has another vocabulary.
    """
    default = default_chunk_tokens(weight.shape[0], models=1 if reference is None else 2)
    chunk = default if chunk_tokens is None else _checked(chunk_tokens)
    values = _TokenStatistics.apply(hidden, weight, bias, targets, chunk, transform, reference, with_p2)
    return _named(values, reference, with_p2)


def _named(values: Sequence[Tensor], reference: ReferenceStates | None, with_p2: bool) -> TokenStatistics:
    rest = iter(values)
    return TokenStatistics(
        logps=next(rest),
        kl=None if reference is None else next(rest),
        log_sum_p2=next(rest) if with_p2 else None,
    )


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    chunk_tokens: int | None = None,
    transform: LogitTransform = IDENTITY,
) -> Tensor:
    """Compute the log-probability of each target token under a linear language-model head.

    Args:
        hidden: hidden states before the head, [N, H], any floating dtype.
        weight: head weight, [V, H]; its gradient is computed only if it requires one.
        targets: token ids, [N].
        bias: head bias, [V], or None.
        chunk_tokens: number of tokens whose logits exist at a time; None for 64 MiB of float32 logits per chunk.
        transform: the model's transform of its logits after the head.

    Returns:
        Log-probabilities in nats, [N], float32 (float64 for float64 hidden states).

    Raises:
        SepoError: if a chunk has less than one token.
    """
    return token_statistics(hidden, weight, targets, bias=bias, chunk_tokens=chunk_tokens, transform=transform).logps


def token_statistics_by_module(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    targets: Tensor,
    *,
    chunk_tokens: int,
    transform: LogitTransform = IDENTITY,
    reference: ReferenceStates | None = None,
    with_p2: bool = False,
) -> TokenStatistics:
    """``token_statistics`` for a head that is not a plain linear layer (LoRA, quantized), by the head's own forward.

    Each chunk is recomputed in the backward pass, so that only one chunk's logits exist at a time here too.

    Args:
        hidden: [N, H].
        head: the head's own forward, [n, H] to [n, V].
        targets: token ids, [N].
        chunk_tokens: tokens per chunk.
        transform: the model's transform of its logits after the head.
        reference: if given, KL(ref || policy) is computed; its hidden states belong to the same N tokens.
        with_p2: whether to compute log sum_v p_v^2.

    Returns:
        The statistics, [N] each.

    Raises:
        SepoError: if a chunk has less than one token, or the reference has another vocabulary.
    """
    chunk = _checked(chunk_tokens)

    def chunk_statistics(states: Tensor, ids: Tensor, rows: slice) -> tuple[Tensor, ...]:
        logits = transform(at_least_float32(head(states)))
        log_norm = torch.logsumexp(logits, -1)
        values = [_gather(logits, ids) - log_norm]
        if reference is not None:
            log_q = reference.log_probs(rows, vocabulary=logits.shape[-1])
            values.append(kl_divergence(log_q, logits, log_norm))
        if with_p2:
            values.append(log_sum_p2(logits.detach(), log_norm.detach()))
        return tuple(values)

    pieces = []
    for start in range(0, max(1, hidden.shape[0]), chunk):
        rows = slice(start, start + chunk)
        arguments = hidden[rows], targets[rows], rows
        pieces.append(
            checkpoint(chunk_statistics, *arguments, use_reentrant=False)
            if torch.is_grad_enabled()
            else chunk_statistics(*arguments)
        )
    return _named([torch.cat(parts) for parts in zip(*pieces, strict=True)], reference, with_p2)


def token_log_probs_by_module(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    targets: Tensor,
    *,
    chunk_tokens: int,
    transform: LogitTransform = IDENTITY,
) -> Tensor:
    """``token_log_probs`` for a head that is not a plain linear layer; see ``token_statistics_by_module``.

    Returns:
        Log-probabilities in nats, [N].

    Raises:
        SepoError: if a chunk has less than one token.
    """
    return token_statistics_by_module(hidden, head, targets, chunk_tokens=chunk_tokens, transform=transform).logps
