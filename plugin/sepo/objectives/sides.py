"""One side of a batch of pairs (all chosen or all rejected responses), with unselected positions set to 0."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sepo.errors import SepoError


@dataclass(frozen=True)
class Side:
    """The per-token tensors [B, T] of one side, exactly 0 where ``selection`` is False, in float32 or wider.

    ``torch.where`` sets the zeros before any arithmetic. A sum over T is then a sum over the selection, and NaN or
    infinity at an unselected position reaches neither the loss nor, as NaN * 0, the gradient.

    Attributes:
        policy: log pi_theta in nats; carries the gradient.
        selection: bool, the tokens that are optimized.
        weights: weight of each token, detached; None for 1.
        reference: log pi_ref in nats.
        token_rewards: T-REG's rewards in [-0.5, 0.5].
        kl: KL(ref || policy) in nats; carries the gradient.
        log_sum_p2: log of the sum over the vocabulary of the squared policy probabilities.
        response_policy: log pi_theta over the whole response, 0 in the padding; carries the gradient.
        response_mask: bool, every counted token of the response.
    """

    policy: Tensor
    selection: Tensor
    weights: Tensor | None = None
    reference: Tensor | None = None
    token_rewards: Tensor | None = None
    kl: Tensor | None = None
    log_sum_p2: Tensor | None = None
    response_policy: Tensor | None = None
    response_mask: Tensor | None = None

    @cached_property
    def mass(self) -> Tensor:
        """Divisor of a mean: the number of selected tokens, or the sum of their weights, [B]; 1 without any."""
        if self.weights is None:
            return self.selection.sum(dim=-1).clamp(min=1)
        mass = self.weights.sum(dim=-1)
        return torch.where(self.selection.any(dim=-1), mass, torch.ones_like(mass))

    def total(self, values: Tensor, *, average: bool) -> Tensor:
        """Reduce values [B, T] that are 0 outside the selection to their weighted sum or mean over it, [B]."""
        if self.weights is not None:
            values = self.weights * values
        summed = values.sum(dim=-1)
        return summed / self.mass if average else summed


def present(tensor: Tensor | None, name: str) -> Tensor:
    """Return ``tensor``; raise if it is missing. ``name`` is its argument name in the public functions."""
    if tensor is None:
        raise SepoError(f"{name} is missing: this objective needs it, pass {name}=... for both responses of the pair.")
    return tensor


def zero_outside(region: Tensor, values: Tensor) -> Tensor:
    """Return ``values`` where ``region`` is True and 0 elsewhere, in float32 or wider, with no gradient elsewhere."""
    kept = torch.where(region, values, values.new_zeros(()))
    return kept.to(torch.promote_types(values.dtype, torch.float32))
