"""Token weights of a method over a batch of pairs, beside its selection."""

from __future__ import annotations

import torch
from torch import Tensor

from sepo.errors import SepoError
from sepo.objectives.inputs import given
from sepo.objectives.method import Method
from sepo.objectives.selecting import live_scores
from sepo.objectives.sides import zero_outside
from sepo.objectives.token_weights import WeighedTokens
from sepo.selection.select import check_mask

Weights = tuple[Tensor, Tensor] | tuple[None, None]
"""The weights of both sides, [B, Tw] and [B, Tl]; None for a method that does not weigh tokens."""


def weigh(
    method: Method,
    *,
    chosen_mask: Tensor,
    rejected_mask: Tensor,
    chosen_selection: Tensor,
    rejected_selection: Tensor,
    chosen_scores: Tensor | None = None,
    rejected_scores: Tensor | None = None,
    policy_chosen_logps: Tensor | None = None,
    policy_rejected_logps: Tensor | None = None,
    ref_chosen_logps: Tensor | None = None,
    ref_rejected_logps: Tensor | None = None,
) -> Weights:
    """Compute the weight of every selected token.

    Like a selection, weights from stored scores, positions or lengths need no model and can be computed before the
    forward pass. Inputs that the method does not need are ignored.

    Args:
        method: from ``resolve_method``.
        chosen_mask: [B, Tw] bool, True where a response token counts; positions and lengths are counted over it.
        rejected_mask: [B, Tl] bool.
        chosen_selection: [B, Tw] bool, from ``select``.
        rejected_selection: [B, Tl] bool.
        chosen_scores: [B, Tw] stored scores; needed if ``method.weighs_by_scores`` and the scorer is a stored one.
        rejected_scores: [B, Tl].
        policy_chosen_logps: [B, Tw] per-token log-probabilities in nats, for weights from live scores; detached.
        policy_rejected_logps: [B, Tl].
        ref_chosen_logps: [B, Tw].
        ref_rejected_logps: [B, Tl].

    Returns:
        (chosen_weights, rejected_weights), detached, 0 where not selected and where the weight vanishes in float32;
        (None, None) if the method does not weigh tokens.

    Raises:
        SepoError: if a needed input is missing, shapes do not match, or a weight is not finite, negative in a mean, or
            not defined for a score.
    """
    if method.token_weight is None:
        return None, None
    sides = {
        "chosen": (chosen_mask, chosen_selection, chosen_scores, policy_chosen_logps, ref_chosen_logps),
        "rejected": (rejected_mask, rejected_selection, rejected_scores, policy_rejected_logps, ref_rejected_logps),
    }
    found = []
    for side, other in (("chosen", rejected_mask), ("rejected", chosen_mask)):
        mask, selection, stored, policy, reference = sides[side]
        check_mask(mask, name=f"{side}_mask")
        scores = None
        if method.weighs_by_scores:
            if method.needs_scores:
                scores = given(method, f"{side}_scores", stored, like=mask)
            else:
                scores = live_scores(method, side, mask=mask, policy=policy, reference=reference)
            scores = zero_outside(selection, scores.detach())
        tokens = WeighedTokens(
            mask=mask,
            selection=selection,
            other_mask=other,
            chosen=side == "chosen",
            scale=method.reward.scale,
            scores=scores,
        )
        found.append(_checked(method, side, method.token_weight.weights(tokens), selection))
    return found[0], found[1]


def _checked(method: Method, side: str, weights: Tensor, selection: Tensor) -> Tensor:
    what = f"token weights of the {side} responses ({type(method.token_weight).__name__})"
    if not isinstance(weights, Tensor) or weights.shape != selection.shape or not weights.is_floating_point():
        found = f"{weights.dtype} {list(weights.shape)}" if isinstance(weights, Tensor) else type(weights).__name__
        raise SepoError(
            f"the {what} are {found}, expected a floating-point tensor of shape {list(selection.shape)}: return one "
            "weight for every token position."
        )
    weights = zero_outside(selection, weights.detach())
    refused = ~torch.isfinite(weights)
    expected = "a finite number"
    if method.averages:
        refused, expected = refused | (weights < 0), "a finite number of at least 0, since the objective takes a mean"
    if bool(refused.any()):
        row, position = (int(index) for index in refused.nonzero()[0])
        raise SepoError(
            f"one of the {what} is {float(weights[row, position]):g} in row {row}, position {position}, expected "
            f"{expected}: check the token scores of this row."
        )
    return torch.where(weights.float() != 0, weights, torch.zeros_like(weights))
