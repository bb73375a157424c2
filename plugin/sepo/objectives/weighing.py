"""Token weights of a method over a batch of pairs, beside its selection."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sepo.errors import SepoError
from sepo.objectives.inputs import given, present
from sepo.objectives.method import Method
from sepo.objectives.selecting import live_scores
from sepo.objectives.sides import zero_outside
from sepo.objectives.token_weights import StateWeight, WeighedTokens, WeightError
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
    chosen_state_weights: Tensor | None = None,
    rejected_state_weights: Tensor | None = None,
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
        chosen_state_weights: [B, Tw] from ``weigh_states``; needed if ``method.weighs_by_states``.
        rejected_state_weights: [B, Tl].

    Returns:
        (chosen_weights, rejected_weights), detached, 0 where not selected and where the weight vanishes in float32;
        (None, None) if the method does not weigh tokens.

    Raises:
        WeightError: if a weight is not finite, negative in a mean, or not defined for a score.
        SepoError: if a needed input is missing, or shapes do not match.
    """
    if method.token_weight is None:
        return None, None
    sides = {
        "chosen": (chosen_mask, chosen_selection, chosen_scores, policy_chosen_logps, ref_chosen_logps),
        "rejected": (rejected_mask, rejected_selection, rejected_scores, policy_rejected_logps, ref_rejected_logps),
    }
    by_states = {"chosen": chosen_state_weights, "rejected": rejected_state_weights}
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
        state_weights = None
        if method.weighs_by_states:
            state_weights = zero_outside(selection, given(method, f"{side}_state_weights", by_states[side], like=mask))
        tokens = WeighedTokens(
            mask=mask,
            selection=selection,
            other_mask=other,
            chosen=side == "chosen",
            scale=method.reward.scale,
            scores=scores,
            state_weights=state_weights,
        )
        found.append(_checked(method, side, method.token_weight.weights(tokens), selection))
    return found[0], found[1]


@torch.no_grad()
def weigh_states(weight: StateWeight, states: Tensor, lengths: Sequence[int]) -> Tensor:
    """Compute the weights of tokens from hidden states, pair by pair.

    Args:
        weight: a method's token weight.
        states: [N, H], the states of the tokens of 2B responses, the chosen ones first.
        lengths: number of tokens of each of these responses.

    Returns:
        [N] weights, without gradient.
    """
    responses = torch.split(states, list(lengths))
    pairs = len(responses) // 2
    weights = [weight.of_pair(*pair) for pair in zip(responses[:pairs], responses[pairs:], strict=True)]
    chosen, rejected = zip(*weights, strict=True)
    return torch.cat([*chosen, *rejected])


def state_weights(
    method: Method,
    *,
    chosen_states: Tensor | None,
    rejected_states: Tensor | None,
    chosen_mask: Tensor,
    rejected_mask: Tensor,
    chosen_selection: Tensor,
    rejected_selection: Tensor,
) -> Weights:
    """Compute the weights of a method that reads hidden states, from those of padded responses.

    Args:
        method: from ``resolve_method``.
        chosen_states: [B, Tw, H]; entry t is the state from which response token t is predicted.
        rejected_states: [B, Tl, H].
        chosen_mask: [B, Tw] bool, True where a response token counts.
        rejected_mask: [B, Tl] bool.
        chosen_selection: [B, Tw] bool, from ``select``.
        rejected_selection: [B, Tl] bool.

    Returns:
        The weights for ``weigh``, 0 at other tokens; (None, None) if the method does not read states.

    Raises:
        SepoError: if the states are missing, not floating-point or of another shape.
    """
    weight = method.token_weight
    if not isinstance(weight, StateWeight):
        return None, None
    chosen, rejected = (chosen_selection, rejected_selection) if method.needs_scores else (chosen_mask, rejected_mask)
    read = [
        _states(method, name, states, tokens)[tokens]
        for name, states, tokens in (
            ("chosen_states", chosen_states, chosen),
            ("rejected_states", rejected_states, rejected),
        )
    ]
    if len({states.shape[-1] for states in read}) > 1:
        widths = " and ".join(str(states.shape[-1]) for states in read)
        raise SepoError(
            f"chosen_states and rejected_states have {widths} features, expected as many: pass one model's."
        )
    lengths = [*chosen.sum(dim=-1).tolist(), *rejected.sum(dim=-1).tolist()]
    first, second = torch.split(weigh_states(weight, torch.cat(read), lengths), [len(states) for states in read])
    return (
        first.new_zeros(chosen.shape).masked_scatter(chosen, first),
        second.new_zeros(rejected.shape).masked_scatter(rejected, second),
    )


def _states(method: Method, name: str, states: Tensor | None, tokens: Tensor) -> Tensor:
    states = present(method, name, states, shape="[B, T, H]")
    if states.dim() != 3 or states.shape[:2] != tokens.shape or not states.is_floating_point():
        raise SepoError(
            f"{name} is {states.dtype} {list(states.shape)}, expected a floating-point tensor [B, T, H] with B, T = "
            f"{', '.join(map(str, tokens.shape))}: pass the hidden state of every token position."
        )
    return states


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
        refused, expected = refused | (weights < 0), f"a finite number of at least 0, since {method.name} takes a mean"
    if bool(refused.any()):
        row, position = (int(index) for index in refused.nonzero()[0])
        found = f"token weight {float(weights[row, position]):g} ({type(method.token_weight).__name__})"
        raise WeightError(side, row, position, found=found, expected=expected)
    return torch.where(weights.float() != 0, weights, torch.zeros_like(weights))
