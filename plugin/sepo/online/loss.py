"""Clipped policy-gradient loss of tokens with an advantage each (PPO, arXiv 1707.06347; GRPO, arXiv 2402.03300).

With one advantage per response and every token selected it is the loss of TRL's GRPO trainer, whose version 0.24 takes
one advantage per response only. Tokens that are not selected have weight 0 in the sum and count in the divisor, as in
arXiv 2506.01939 and TRL's ``top_entropy_quantile``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sepo.errors import SepoError

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo"]
"""Divisor of the sum over tokens, with the names of TRL's ``loss_type``."""

LOSS_TYPES: tuple[str, ...] = get_args(LossType)


@dataclass(frozen=True)
class ClippedLoss:
    """Loss of each token, and where the ratio is clipped.

    Attributes:
        values: [B, T], differentiable.
        low: [B, T] bool, True where a ratio below 1 - epsilon has no gradient.
        high: [B, T] bool, True where a ratio above 1 + epsilon has none.
    """

    values: Tensor
    low: Tensor
    high: Tensor


def clipped_loss(logps: Tensor, sampling_logps: Tensor, advantages: Tensor, *, epsilon: float) -> ClippedLoss:
    """Compute -min(w A, clip(w, 1 - epsilon, 1 + epsilon) A) with w = pi / pi_sampling, for each token.

    Args:
        logps: [B, T] log-probabilities of the policy in nats, with gradient.
        sampling_logps: [B, T] those of the policy that sampled the responses, without.
        advantages: [B, T].
        epsilon: half of the width of the interval in which a ratio has a gradient in both directions.
    """
    ratio = torch.exp(logps - sampling_logps)
    values = -torch.min(ratio * advantages, ratio.clamp(1 - epsilon, 1 + epsilon) * advantages)
    return ClippedLoss(values, (ratio < 1 - epsilon) & (advantages < 0), (ratio > 1 + epsilon) & (advantages > 0))


def divergence(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Return the estimate of KL(pi || pi_ref) of each token that GRPO adds to its loss, exp(d) - d - 1, d = ref - pi.

    Args:
        logps: [B, T] log-probabilities of the policy in nats, with gradient.
        ref_logps: [B, T] those of the reference, without.
    """
    difference = ref_logps - logps
    return torch.exp(difference) - difference - 1


def token_weights(
    mask: Tensor,
    loss_type: str,
    *,
    accumulation: int,
    max_tokens: int,
    batch_tokens: Tensor | float,
) -> Tensor:
    """Return the weight of each token of a device batch in the loss of an optimizer step.

    Args:
        mask: [B, T] bool, True at response tokens.
        loss_type: ``grpo``: the mean over responses of the mean over tokens; ``bnpo``: the mean over the tokens of the
            device batch; ``dr_grpo``: as if every response had ``max_tokens``; ``dapo``: the mean over the tokens of
            the optimizer step.
        accumulation: number of device batches of a process in an optimizer step; ``dapo`` does not use it.
        max_tokens: maximum number of tokens of a response.
        batch_tokens: for ``dapo``, response tokens of the optimizer step per process.

    Returns:
        [B, T] float32, 0 outside the mask.

    Raises:
        SepoError: if the type is unknown.
    """
    counts = mask.sum(-1, keepdim=True).clamp(min=1)
    if loss_type == "grpo":
        divisor = counts * len(mask) * accumulation
    elif loss_type == "bnpo":
        divisor = mask.sum().clamp(min=1) * accumulation
    elif loss_type == "dr_grpo":
        divisor = torch.tensor(len(mask) * max_tokens * accumulation, device=mask.device)
    elif loss_type == "dapo":
        divisor = torch.as_tensor(batch_tokens, device=mask.device)
    else:
        raise SepoError(f"the loss type is {loss_type!r}, expected one of {', '.join(LOSS_TYPES)}.")
    return mask.float() / divisor
