"""Per-pair losses from per-token log-probabilities: select tokens, then apply the method's parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sepo.errors import SepoError
from sepo.objectives.inputs import given as _given
from sepo.objectives.inputs import present as _present
from sepo.objectives.inputs import same_shape as _same_shape
from sepo.objectives.method import Method
from sepo.objectives.output import PreferenceOutput
from sepo.objectives.resolve import resolve_method
from sepo.objectives.reward_penalties import PairRewards
from sepo.objectives.selecting import select
from sepo.objectives.sides import Side, zero_outside
from sepo.objectives.weighing import state_weights, weigh
from sepo.selection.select import check_mask, require_counted_tokens


@dataclass(frozen=True)
class _PairLosses:
    """The losses [B] of one objective, the two terms [B] whose difference its link sees, and its metrics."""

    losses: Tensor
    chosen_term: Tensor
    rejected_term: Tensor
    metrics: dict[str, Tensor]


def _pair_losses(method: Method, chosen: Side, rejected: Side, *, complete: Tensor | None) -> _PairLosses:
    """Compute the losses of one method, without the other methods of a sum.

    Args:
        method: the method.
        chosen: its chosen side.
        rejected: its rejected side.
        complete: [B] bool, the pairs with a selected token on both sides; None if all are.
    """
    reward, link = method.reward, method.link
    rewards = PairRewards(chosen=reward.unscaled(chosen), rejected=reward.unscaled(rejected), metrics={})
    rewards = method.penalty.apply(rewards, reward=reward, chosen=chosen, rejected=rejected)
    metrics = dict(rewards.metrics)
    chosen_term = _where(complete, link.term(reward.scale * rewards.chosen))
    rejected_term = _where(complete, link.term(reward.scale * rewards.rejected))
    h = chosen_term - rejected_term
    losses, slope = _where(complete, link.loss(h)), _where(complete, link.slope(h))
    if method.pair_weight is not None:
        weight = method.pair_weight.weight(chosen=chosen, rejected=rejected)
        losses, slope = weight * losses, weight * slope
        metrics["pair_weight"] = weight
    if method.regularizers:
        losses, regularized = _regularized(
            method, losses, slope=slope, chosen=chosen, rejected=rejected, complete=complete
        )
        metrics |= regularized
    return _PairLosses(losses, chosen_term, rejected_term, metrics)


def _where(complete: Tensor | None, values: Tensor) -> Tensor:
    """Return values [B] with 0 for incomplete pairs, which then have no gradient."""
    return values if complete is None else torch.where(complete, values, torch.zeros_like(values))


def _regularized(
    method: Method, losses: Tensor, *, slope: Tensor, chosen: Side, rejected: Side, complete: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the losses [B] with the regularizers' terms added, and the metrics of these with their loss share.

    A term over the selected tokens is 0 for incomplete pairs.
    """
    preference = losses.detach().abs()
    regularization = torch.zeros_like(preference)
    metrics: dict[str, Tensor] = {}
    for regularizer in method.regularizers:
        term = regularizer.term(reward=method.reward, slope=slope, chosen=chosen, rejected=rejected)
        added = term.loss if regularizer.needs_response else _where(complete, term.loss)
        losses = losses + added
        regularization = regularization + added.detach().abs()
        metrics |= term.metrics
    # Both can be 0 (RRHF over tokens of probability 1); the share is then 0.
    both = preference + regularization
    metrics["regularizer_share"] = regularization / both.where(both > 0, 1.0)
    return losses, metrics


def preference_loss(
    method: Method,
    *,
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    chosen_selection: Tensor,
    rejected_selection: Tensor,
    chosen_weights: Tensor | None = None,
    rejected_weights: Tensor | None = None,
    chosen_mask: Tensor | None = None,
    rejected_mask: Tensor | None = None,
    ref_chosen_logps: Tensor | None = None,
    ref_rejected_logps: Tensor | None = None,
    chosen_token_rewards: Tensor | None = None,
    rejected_token_rewards: Tensor | None = None,
    chosen_kl: Tensor | None = None,
    rejected_kl: Tensor | None = None,
    chosen_log_sum_p2: Tensor | None = None,
    rejected_log_sum_p2: Tensor | None = None,
) -> PreferenceOutput:
    """Compute the loss of every pair over given selections.

    Values at unselected positions of any tensor (zeros, NaN, the output of a partial forward pass) change neither the
    loss nor its gradient. The one exception is a regularizer over the whole chosen response
    (``method.needs_response``), which needs ``chosen_mask`` and the policy's log-probabilities on it. Inputs that the
    method does not need are ignored.

    Args:
        method: from ``resolve_method``.
        policy_chosen_logps: [B, Tw] per-token log-probabilities in nats, any floating dtype; carries the gradient.
        policy_rejected_logps: [B, Tl].
        chosen_selection: [B, Tw] bool, from ``select``; at least one True per row, unless the selector may leave a
            response empty: such a pair has loss 0.
        rejected_selection: [B, Tl] bool.
        chosen_weights: [B, Tw] from ``weigh``; needed if the method has a token weight, and detached here. A weight of
            0 excludes its token.
        rejected_weights: [B, Tl].
        chosen_mask: [B, Tw] bool, all counted tokens; read if ``method.needs_response``.
        rejected_mask: [B, Tl] bool; likewise.
        ref_chosen_logps: [B, Tw] in nats; needed if ``method.needs_reference`` and the reward is over the reference.
        ref_rejected_logps: [B, Tl].
        chosen_token_rewards: [B, Tw] in [-0.5, 0.5] (T-REG), detached here.
        rejected_token_rewards: [B, Tl].
        chosen_kl: [B, Tw] KL(ref || policy) in nats (TDPO); carries the gradient unless the method detaches it.
        rejected_kl: [B, Tl].
        chosen_log_sum_p2: [B, Tw] log of the sum of squared policy probabilities (WPO), detached here.
        rejected_log_sum_p2: [B, Tl].

    Returns:
        A PreferenceOutput, in float32 or wider.

    Raises:
        SepoError: if a needed input is missing, shapes or dtypes do not match, a response has no selected token, or its
            weights in a mean are all 0.
    """
    if policy_chosen_logps.dim() != 2 or policy_chosen_logps.shape[0] != policy_rejected_logps.shape[0]:
        raise SepoError(
            f"policy_chosen_logps has shape {list(policy_chosen_logps.shape)} and policy_rejected_logps "
            f"{list(policy_rejected_logps.shape)}, expected [B, Tw] and [B, Tl] with the same B: pass one row per pair."
        )
    chosen = _side(
        method,
        "chosen",
        policy=policy_chosen_logps,
        selection=chosen_selection,
        weights=chosen_weights,
        mask=chosen_mask,
        reference=ref_chosen_logps,
        token_rewards=chosen_token_rewards,
        kl=chosen_kl,
        log_sum_p2=chosen_log_sum_p2,
    )
    rejected = _side(
        method,
        "rejected",
        policy=policy_rejected_logps,
        selection=rejected_selection,
        weights=rejected_weights,
        mask=rejected_mask,
        reference=ref_rejected_logps,
        token_rewards=rejected_token_rewards,
        kl=rejected_kl,
        log_sum_p2=rejected_log_sum_p2,
    )

    complete = None
    if method.selector is not None and method.selector.may_be_empty:
        complete = chosen.selection.any(dim=-1) & rejected.selection.any(dim=-1)
    own = _pair_losses(method, chosen, rejected, complete=complete)
    losses, metrics = own.losses, own.metrics
    if method.factors:
        losses, metrics = _summed(method, own, chosen, rejected, complete=complete)
    if complete is not None:
        metrics["empty_pair"] = (~complete).to(losses.dtype)
    return PreferenceOutput(
        losses=losses,
        chosen_rewards=own.chosen_term.detach(),
        rejected_rewards=own.rejected_term.detach(),
        chosen_selection=chosen.selection,
        rejected_selection=rejected.selection,
        metrics=metrics,
        chosen_weights=chosen.weights,
        rejected_weights=rejected.weights,
    )


def _summed(
    method: Method, own: _PairLosses, chosen: Side, rejected: Side, *, complete: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the losses [B] of a sum of objectives, and the metrics of each, by the names of the objectives."""
    losses = method.factor * own.losses
    found = {next(iter(method.factors)): own}
    for factor, other in method.added:
        found[other.name] = _pair_losses(other, chosen, rejected, complete=complete)
        losses = losses + factor * found[other.name].losses
    metrics: dict[str, Tensor] = {}
    for name, part in found.items():
        metrics[f"{name}_loss"] = part.losses.detach()
        metrics |= {f"{name}_{metric}": values for metric, values in part.metrics.items()}
    return losses, metrics


def compute_preference_loss(
    objective: str | Mapping[str, float],
    *,
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    chosen_mask: Tensor,
    rejected_mask: Tensor,
    ref_chosen_logps: Tensor | None = None,
    ref_rejected_logps: Tensor | None = None,
    chosen_scores: Tensor | None = None,
    rejected_scores: Tensor | None = None,
    chosen_steps: Tensor | None = None,
    rejected_steps: Tensor | None = None,
    chosen_counts: Tensor | None = None,
    rejected_counts: Tensor | None = None,
    chosen_token_rewards: Tensor | None = None,
    rejected_token_rewards: Tensor | None = None,
    chosen_kl: Tensor | None = None,
    rejected_kl: Tensor | None = None,
    chosen_log_sum_p2: Tensor | None = None,
    rejected_log_sum_p2: Tensor | None = None,
    chosen_states: Tensor | None = None,
    rejected_states: Tensor | None = None,
    **hyperparameters: object,
) -> PreferenceOutput:
    """Compute the loss of every pair: ``resolve_method``, ``select``, ``weigh`` and ``preference_loss`` in
    one call.

    Inputs that the objective does not need are ignored; a missing input that it needs is an error.

    Args:
        objective: a name from ``available_objectives()``, or a sum of objectives, see ``resolve_method``.
        policy_chosen_logps: [B, Tw] per-token log-probabilities of the policy in nats, shifted so that entry t belongs
            to response token t; any floating dtype; carries the gradient.
        policy_rejected_logps: [B, Tl].
        chosen_mask: [B, Tw] bool, True where a response token counts; values elsewhere may be anything, even NaN.
        rejected_mask: [B, Tl] bool.
        ref_chosen_logps: [B, Tw] reference log-probabilities in nats.
        ref_rejected_logps: [B, Tl].
        chosen_scores: [B, Tw] stored token scores, for token scorers that run before training (SePO), and for token
            weights: the oracle's log-ratio (``tgdpo``), log pi+ - log pi- (``tis_dpo``), a number in [0, 1]
            (``critical_dpo``), random numbers (``sampo``).
        rejected_scores: [B, Tl].
        chosen_steps: [B, Tw] integers, the number of each token's line or sentence, for unit="step".
        rejected_steps: [B, Tl].
        chosen_counts: [B] integers, each response's share of the data set's budget, for scope="dataset".
        rejected_counts: [B].
        chosen_token_rewards: [B, Tw] token rewards in [-0.5, 0.5] (T-REG).
        rejected_token_rewards: [B, Tl].
        chosen_kl: [B, Tw] KL(ref || policy) in nats (TDPO); carries the gradient.
        rejected_kl: [B, Tl].
        chosen_log_sum_p2: [B, Tw] log of the sum of squared policy probabilities (WPO).
        rejected_log_sum_p2: [B, Tl].
        chosen_states: [B, Tw, H] the policy's last hidden states, after the final norm; entry t is the one from which
            response token t is predicted (OTPO); read without gradient.
        rejected_states: [B, Tl, H].
        **hyperparameters: see ``resolve_method``.

    Returns:
        A PreferenceOutput: ``losses`` [B] with rewards, selections and metrics, in float32 or wider.

    Raises:
        SepoError: see ``resolve_method``, ``select``, ``weigh`` and ``preference_loss``.

    Example:
        >>> import torch
        >>> logps = torch.tensor([[-1.0, -2.0, -3.0]])
        >>> mask = torch.ones(1, 3, dtype=torch.bool)
        >>> out = compute_preference_loss(
        ...     "sepo",
        ...     policy_chosen_logps=logps,
        ...     policy_rejected_logps=logps,
        ...     chosen_mask=mask,
        ...     rejected_mask=mask,
        ...     chosen_scores=torch.tensor([[0.5, 0.1, 0.2]]),
        ...     rejected_scores=torch.tensor([[0.5, 0.1, 0.2]]),
        ... )
        >>> out.chosen_selection, out.rejected_selection
        (tensor([[ True, False, False]]), tensor([[False,  True, False]]))
        >>> out.losses  # -log sigmoid(-1 - -2)
        tensor([0.3133])
    """
    method = resolve_method(objective, **hyperparameters)
    _same_shape("chosen_mask", chosen_mask, "policy_chosen_logps", policy_chosen_logps)
    _same_shape("rejected_mask", rejected_mask, "policy_rejected_logps", policy_rejected_logps)
    logps: dict[str, Any] = {
        "policy_chosen_logps": policy_chosen_logps,
        "policy_rejected_logps": policy_rejected_logps,
        "ref_chosen_logps": ref_chosen_logps,
        "ref_rejected_logps": ref_rejected_logps,
    }
    tokens: dict[str, Any] = {
        "chosen_mask": chosen_mask,
        "rejected_mask": rejected_mask,
        "chosen_scores": chosen_scores,
        "rejected_scores": rejected_scores,
    }
    chosen_selection, rejected_selection = select(
        method,
        **tokens,
        chosen_steps=chosen_steps,
        rejected_steps=rejected_steps,
        chosen_counts=chosen_counts,
        rejected_counts=rejected_counts,
        **logps,
    )
    selections: dict[str, Any] = {"chosen_selection": chosen_selection, "rejected_selection": rejected_selection}
    by_states = state_weights(
        method, chosen_states=chosen_states, rejected_states=rejected_states, chosen_mask=chosen_mask,
        rejected_mask=rejected_mask, **selections,
    )  # fmt: skip
    chosen_weights, rejected_weights = weigh(
        method, **tokens, **selections, **logps,
        chosen_state_weights=by_states[0], rejected_state_weights=by_states[1],
    )  # fmt: skip
    return preference_loss(
        method,
        **logps,
        **selections,
        chosen_weights=chosen_weights,
        rejected_weights=rejected_weights,
        chosen_mask=chosen_mask,
        rejected_mask=rejected_mask,
        chosen_token_rewards=chosen_token_rewards,
        rejected_token_rewards=rejected_token_rewards,
        chosen_kl=chosen_kl,
        rejected_kl=rejected_kl,
        chosen_log_sum_p2=chosen_log_sum_p2,
        rejected_log_sum_p2=rejected_log_sum_p2,
    )


def _side(
    method: Method,
    side: str,
    *,
    policy: Tensor,
    selection: Tensor,
    weights: Tensor | None,
    mask: Tensor | None,
    reference: Tensor | None,
    token_rewards: Tensor | None,
    kl: Tensor | None,
    log_sum_p2: Tensor | None,
) -> Side:
    """Check one side's tensors, keep those that the method needs, and set unselected positions to 0."""
    name = f"policy_{side}_logps"
    policy = _given(method, name, policy, like=selection)
    check_mask(selection, name=f"{side}_selection")
    if method.selector is None or not method.selector.may_be_empty:
        require_counted_tokens(selection, what=f"{side} response's selection")
    if method.token_weight is not None:
        weights = zero_outside(selection, _given(method, f"{side}_weights", weights, like=policy).detach())
        weights = weights.to(torch.promote_types(policy.dtype, torch.float32))
        support = weights != 0
        unweighted = selection.any(dim=-1) & ~support.any(dim=-1)
        if method.averages and bool(unweighted.any()):
            raise SepoError(
                f"the token weights of the {side} response in row {int(unweighted.nonzero()[0, 0])} are all 0, and "
                f"{method.name} takes their mean, expected one above 0: remove this pair, or use an objective of "
                "summed rewards (dpo)."
            )
        selection = support
    else:
        weights = None

    def selected(needed: bool, tensor_name: str, tensor: Tensor | None) -> Tensor | None:
        return zero_outside(selection, _given(method, tensor_name, tensor, like=policy)) if needed else None

    response_policy = response_mask = None
    if method.needs_response:
        response_mask = _present(method, f"{side}_mask", mask)
        check_mask(response_mask, name=f"{side}_mask")
        _same_shape(f"{side}_mask", response_mask, name, policy)
        require_counted_tokens(response_mask, what=f"{side} response")
        response_policy = zero_outside(response_mask, policy)
    return Side(
        policy=zero_outside(selection, policy),
        selection=selection,
        weights=weights,
        reference=selected(method.over_reference, f"ref_{side}_logps", reference),
        token_rewards=selected(method.needs_token_rewards, f"{side}_token_rewards", token_rewards),
        kl=selected(method.needs_kl, f"{side}_kl", kl),
        log_sum_p2=selected(method.needs_log_sum_p2, f"{side}_log_sum_p2", log_sum_p2),
        response_policy=response_policy,
        response_mask=response_mask,
    )
