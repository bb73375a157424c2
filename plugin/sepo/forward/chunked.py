"""Log-probabilities of chosen tokens from hidden states, in chunks, with a backward pass of its own.

Slow twin: ``torch.log_softmax(head(hidden).float(), -1).gather(-1, targets)``, which keeps tokens x vocabulary
float32 logits for the backward pass. Here nothing of that size outlives one chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from sepo.errors import SepoError

_CHUNK_LOGITS = 1 << 24
"""Logits of one chunk when the user sets no chunk: 64 MiB in float32, whatever the vocabulary."""


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to its logits after the head: ``softcap * tanh(scale * x / softcap)``.

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

    def derivative(self, transformed: Tensor) -> Tensor | float:
        """Derivative of the transform, as a function of its own output."""
        if self.softcap is None:
            return self.scale
        return (1.0 - (transformed / self.softcap).square()) * self.scale


IDENTITY = LogitTransform()


def default_chunk_tokens(vocabulary: int) -> int:
    """Tokens per chunk such that the float32 logits of a chunk take 64 MiB."""
    return max(1, _CHUNK_LOGITS // max(1, vocabulary))


def _checked(chunk_tokens: int) -> int:
    if chunk_tokens < 1:
        raise SepoError(f"chunk_tokens is {chunk_tokens}, expected at least 1: leave it out for 64 MiB of logits.")
    return chunk_tokens


def _matmul_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype in which the head would run here: autocast's when it is on, else that of the hidden states."""
    device = hidden.device.type
    if hidden.dtype == torch.float64 or not torch.is_autocast_enabled(device):  # autocast leaves float64 alone
        return hidden.dtype
    return torch.get_autocast_dtype(device)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


class _TokenLogProbs(torch.autograd.Function):
    """log softmax(transform(hidden W^T + b))[target], one scalar per token.

    The gradient with respect to a hidden state is (upstream scalar) x (one vector that the forward pass already
    knows): d logp / d h = sum_v (1[v = y] - p_v) transform'(z_v) W_v. With a frozen head the forward pass therefore
    keeps that vector, [N, H], and the backward pass is one multiplication: no recomputation, no weight gradient.
    With a trainable head the chunk's logits are computed again in the backward pass.
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
    ) -> Tensor:
        dtype = _matmul_dtype(hidden)
        hidden_trains, weight_trains, bias_trains = ctx.needs_input_grad[:3]
        head_trains = weight_trains or bias_trains
        keep_direction = hidden_trains and not head_trains
        cast_weight = weight.to(dtype)
        logps = torch.empty(
            hidden.shape[0], dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device
        )
        direction = torch.empty_like(hidden) if keep_direction else None
        for start in range(0, hidden.shape[0], chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            logits, log_norm = _chunk_logits(hidden[rows].to(dtype), cast_weight, bias, transform)
            logps[rows] = _gather(logits, targets[rows]) - log_norm
            if direction is not None:
                slope = _logit_gradient(logits, log_norm, targets[rows], transform)
                direction[rows] = (slope.to(dtype) @ cast_weight).to(hidden.dtype)
        ctx.chunk_tokens, ctx.transform, ctx.dtype = chunk_tokens, transform, dtype
        if direction is not None:
            ctx.save_for_backward(direction)
        elif head_trains:
            ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.kept_direction = keep_direction
        return logps

    @staticmethod
    @once_differentiable  # a second derivative would miss what direction holds
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = grads
        if ctx.kept_direction:
            (direction,) = ctx.saved_tensors
            return (upstream.unsqueeze(-1) * direction).to(direction.dtype), None, None, None, None, None
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
            slope = _logit_gradient(logits, log_norm, targets[rows], ctx.transform)
            slope = (slope * upstream[rows].unsqueeze(-1)).to(ctx.dtype)
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
            None,
            None,
            None,
        )


def _chunk_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: LogitTransform
) -> tuple[Tensor, Tensor]:
    """Return the transformed logits [n, V] and their log-sum-exp [n]."""
    bias = bias.to(hidden.dtype) if bias is not None else None
    # Autocast would cast again; the operands already have the dtype in which the head runs.
    with torch.autocast(hidden.device.type, enabled=False):
        logits = transform(_wide(F.linear(hidden, weight, bias)))
    return logits, torch.logsumexp(logits, -1)


def _gather(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def _logit_gradient(logits: Tensor, log_norm: Tensor, targets: Tensor, transform: LogitTransform) -> Tensor:
    """d log p(target) / d raw logits, [n, V]; overwrites ``logits``."""
    index = targets.unsqueeze(-1)
    derivative = transform.derivative(logits)
    slope = logits.sub_(log_norm.unsqueeze(-1)).exp_().neg_()
    slope.scatter_add_(-1, index, torch.ones_like(index, dtype=slope.dtype))
    return slope.mul_(derivative)


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    chunk_tokens: int | None = None,
    transform: LogitTransform = IDENTITY,
) -> Tensor:
    """Log-probability of each target token under a linear language-model head.

    Args:
        hidden: hidden states before the head, [N, H], any floating dtype.
        weight: head weight, [V, H]; its gradient is computed only if it requires one.
        targets: token ids, [N].
        bias: head bias, [V], or None.
        chunk_tokens: tokens whose logits exist at a time; None keeps a chunk at 64 MiB of float32 logits.
        transform: what the model does to its logits after the head.

    Returns:
        Log-probabilities in nats, [N], float32 (float64 for float64 hidden states).

    Raises:
        SepoError: a chunk below one token.
    """
    chunk = default_chunk_tokens(weight.shape[0]) if chunk_tokens is None else _checked(chunk_tokens)
    return _TokenLogProbs.apply(hidden, weight, bias, targets, chunk, transform)


def token_log_probs_by_module(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    targets: Tensor,
    *,
    chunk_tokens: int,
    transform: LogitTransform = IDENTITY,
) -> Tensor:
    """The same for a head that is no plain linear layer (LoRA-wrapped, quantized): its own forward, chunk by chunk.

    Each chunk is recomputed in the backward pass, so that one chunk's logits exist at a time here too.

    Args:
        hidden: [N, H].
        head: the head's own forward, [n, H] to [n, V].
        targets: token ids, [N].
        chunk_tokens: tokens per chunk.
        transform: what the model does to its logits after the head.

    Returns:
        Log-probabilities in nats, [N].

    Raises:
        SepoError: a chunk below one token.
    """

    chunk = _checked(chunk_tokens)

    def chunk_log_probs(states: Tensor, ids: Tensor) -> Tensor:
        logits = transform(_wide(head(states)))
        return _gather(logits, ids) - torch.logsumexp(logits, -1)

    pieces = [
        checkpoint(chunk_log_probs, states, ids, use_reentrant=False)
        if torch.is_grad_enabled()
        else chunk_log_probs(states, ids)
        for states, ids in zip(hidden.split(chunk), targets.split(chunk), strict=True)
    ]
    return torch.cat(pieces)
