"""Advantages of the tokens of sampled responses: returns to go, minus the mean of the group, divided by a scale.

RTO trains a value function; here its place is taken by a mean over the responses to one prompt, as in GRPO (arXiv
2402.03300). With the return G_t = r(x, y) + sum over s >= t of the dense rewards (gamma = lambda = 1), the baseline of
a token at position t is

    b_t = mean over the group of r(x, y) + mean over the responses of the group that have a token t of the dense part,

an estimate of the return from a state in which t tokens are written. A mean of G_1 instead would leave in the advantage
of late tokens the dense rewards of all earlier ones; a mean of G_t over the responses that have a token t alone would
drop the judge's rewards of the shorter ones. Without dense rewards the advantages are those of GRPO, at every token.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from sepo.errors import SepoError

Scale = Literal["group", "batch", "none"]
"""Divisor of the advantages: the standard deviation of the responses' returns G_1 over their group, over the batch, or
1 (``scale_rewards`` of TRL)."""

SCALES: tuple[str, ...] = get_args(Scale)

_EPSILON = 1e-4
"""Added to the standard deviation, as TRL's trainer does."""


def returns_to_go(rewards: Tensor) -> Tensor:
    """Return G_t, the sum of the rewards from token t on, of rewards [B, T] that are 0 at padding."""
    return rewards.flip(-1).cumsum(-1).flip(-1)


def token_advantages(rewards: Tensor, dense: Tensor, mask: Tensor, *, group: int, scale: str) -> Tensor:
    """Compute the advantage of each token.

    Args:
        rewards: [B] the judge's rewards; each ``group`` consecutive responses are those to one prompt.
        dense: [B, T] dense rewards of the tokens, 0 outside the mask.
        mask: [B, T] bool, True at response tokens, which are the first of each row.
        group: number of responses to a prompt.
        scale: ``group``, ``batch`` or ``none``.

    Returns:
        [B, T], 0 outside the mask.

    Raises:
        SepoError: if the number of responses is no multiple of the group, or the scale is unknown.
    """
    if len(rewards) % group:
        raise SepoError(f"{len(rewards)} responses were sampled, expected a multiple of the group size {group}.")
    if scale not in SCALES:
        raise SepoError(f"the scale of the advantages is {scale!r}, expected one of {', '.join(SCALES)}.")
    ahead = returns_to_go(dense)
    rewards = rewards.to(ahead.dtype)
    grouped, present = ahead.view(-1, group, ahead.shape[-1]), mask.view(-1, group, mask.shape[-1])
    dense_mean = (grouped * present).sum(1) / present.sum(1).clamp(min=1)
    reward_mean = rewards.view(-1, group).mean(1)
    baseline = _repeated(reward_mean.unsqueeze(-1) + dense_mean, group)
    advantages = rewards.unsqueeze(-1) + ahead - baseline
    if scale != "none":
        advantages = advantages / (_deviations(rewards + ahead[:, 0], group, scale).unsqueeze(-1) + _EPSILON)
    return advantages.masked_fill(~mask, 0.0)


def _deviations(totals: Tensor, group: int, scale: str) -> Tensor:
    if scale == "batch":
        return totals.std().expand_as(totals)
    return _repeated(totals.view(-1, group).std(1), group)


def _repeated(values: Tensor, group: int) -> Tensor:
    return torch.repeat_interleave(values, group, dim=0)
