"""Token selection of a method over a batch of pairs, by its scores, ratios, unit and scope."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sepo.errors import SepoError
from sepo.objectives.inputs import given, present
from sepo.objectives.method import Method, Selector
from sepo.objectives.sides import zero_outside
from sepo.selection.scopes import Responses, select_pairs, select_units
from sepo.selection.scorer_inputs import LiveTokens
from sepo.selection.select import check_mask, require_counted_tokens, select_tokens


def select(
    method: Method,
    *,
    chosen_mask: Tensor,
    rejected_mask: Tensor,
    chosen_scores: Tensor | None = None,
    rejected_scores: Tensor | None = None,
    chosen_steps: Tensor | None = None,
    rejected_steps: Tensor | None = None,
    chosen_counts: Tensor | None = None,
    rejected_counts: Tensor | None = None,
    policy_chosen_logps: Tensor | None = None,
    policy_rejected_logps: Tensor | None = None,
    ref_chosen_logps: Tensor | None = None,
    ref_rejected_logps: Tensor | None = None,
    chosen_ties: Tensor | None = None,
    rejected_ties: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Select the tokens of each response that enter the loss.

    With stored scores (``method.needs_scores``) this needs no model and can run before the forward pass; with a live
    scorer it needs the step's log-probabilities; without a scorer it returns the masks. Inputs that the method does not
    need are ignored.

    Args:
        method: from ``resolve_method``.
        chosen_mask: [B, Tw] bool, True where a response token counts.
        rejected_mask: [B, Tl] bool.
        chosen_scores: [B, Tw] stored scores.
        rejected_scores: [B, Tl] stored scores.
        chosen_steps: [B, Tw] integers, the number of each token's step; needed if ``method.needs_steps``.
        rejected_steps: [B, Tl].
        chosen_counts: [B] integers, each response's budget (``selection.threshold``); needed if
            ``method.needs_counts``.
        rejected_counts: [B].
        policy_chosen_logps: [B, Tw] per-token log-probabilities in nats, for live scores; detached.
        policy_rejected_logps: [B, Tl].
        ref_chosen_logps: [B, Tw].
        ref_rejected_logps: [B, Tl].
        chosen_ties: [B, Tw] integers, the order of tokens with equal scores (``selection.ties``); None for that of
            their positions.
        rejected_ties: [B, Tl].

    Returns:
        (chosen_selection, rejected_selection), bool of the masks' shapes, at least one token per response unless
            ``method.selector.may_be_empty``.

    Raises:
        SepoError: if a needed input is missing, shapes do not match, a response has no counted token, or the score of a
            counted token is not finite.
    """
    for side, mask in (("chosen", chosen_mask), ("rejected", rejected_mask)):
        check_mask(mask, name=f"{side}_mask")
        if method.selector is None:
            require_counted_tokens(mask, what=f"{side} response")
    if method.selector is None:
        return chosen_mask, rejected_mask
    chosen = _responses(
        method,
        "chosen",
        mask=chosen_mask,
        stored=chosen_scores,
        policy=policy_chosen_logps,
        reference=ref_chosen_logps,
        steps=chosen_steps,
        counts=chosen_counts,
        ties=chosen_ties,
    )
    rejected = _responses(
        method,
        "rejected",
        mask=rejected_mask,
        stored=rejected_scores,
        policy=policy_rejected_logps,
        reference=ref_rejected_logps,
        steps=rejected_steps,
        counts=rejected_counts,
        ties=rejected_ties,
    )
    if method.selector.count == "shorter":
        shorter = torch.minimum(chosen_mask.sum(dim=-1), rejected_mask.sum(dim=-1))
        chosen, rejected = replace(chosen, counts=shorter), replace(rejected, counts=shorter)
    unit, span_tokens = method.selector.unit, method.selector.span_tokens
    if method.selector.scope == "pair":
        return select_pairs(chosen, rejected, unit=unit, span_tokens=span_tokens)
    if method.selector.plain:
        return _plain(method.selector, chosen), _plain(method.selector, rejected)
    first, second = (select_units(side, unit=unit, span_tokens=span_tokens) for side in (chosen, rejected))
    return first, second


def _responses(
    method: Method,
    side: str,
    *,
    mask: Tensor,
    stored: Tensor | None,
    policy: Tensor | None,
    reference: Tensor | None,
    steps: Tensor | None,
    counts: Tensor | None,
    ties: Tensor | None,
) -> Responses:
    """Collect one side's scores and the other inputs of its selector."""
    assert method.selector is not None
    chosen = side == "chosen"
    if method.needs_scores:
        scores = given(method, f"{side}_scores", stored, like=mask)
    else:
        scores = live_scores(method, side, mask=mask, policy=policy, reference=reference)
    return Responses(
        scores=scores,
        mask=mask,
        ratio=method.selector.chosen_ratio if chosen else method.selector.rejected_ratio,
        largest=chosen or method.token_scorer.rejected_largest,
        what=f"{side} response",
        steps=present(method, f"{side}_steps", steps) if method.needs_steps else None,
        counts=present(method, f"{side}_counts", counts, shape="[B]") if method.needs_counts else None,
        ties=ties,
    )


def live_scores(method: Method, side: str, *, mask: Tensor, policy: Tensor | None, reference: Tensor | None) -> Tensor:
    """Compute the live token scores of one side of a batch.

    Args:
        method: a method with a live token scorer.
        side: ``chosen`` or ``rejected``.
        mask: [B, T] bool, True where a response token counts.
        policy: [B, T] per-token log-probabilities of the policy in nats; detached here.
        reference: [B, T] those of the reference, if the scorer compares with it.

    Returns:
        [B, T] scores, undefined outside the mask.

    Raises:
        SepoError: if a needed input is missing, shapes do not match, or a registered scorer did not return a tensor.
    """
    scorer = method.token_scorer
    assert scorer.from_logps is not None
    policy = given(method, f"policy_{side}_logps", policy, like=mask)
    if scorer.compares_with_reference:
        reference = zero_outside(mask, given(method, f"ref_{side}_logps", reference, like=mask).detach())
    else:
        reference = None
    policy = zero_outside(mask, policy.detach())
    scores = scorer.from_logps(LiveTokens(policy, reference, mask, chosen=side == "chosen"))
    if not isinstance(scores, Tensor):
        raise SepoError(
            f"token scorer '{scorer.name}' returned {type(scores).__name__}, expected a tensor of shape "
            f"{list(mask.shape)}: return one score for every token position."
        )
    return scores


def _plain(selector: Selector, side: Responses) -> Tensor:
    return select_tokens(
        side.scores,
        side.mask,
        ratio=side.ratio,
        largest=side.largest,
        rule=selector.rule,
        what=side.what,
        ties=side.ties,
        counts=side.counts,
    )
