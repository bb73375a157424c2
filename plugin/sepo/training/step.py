"""One preference step: select tokens, run the policy at the needed positions, compute loss and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sepo.errors import SepoError
from sepo.forward.evaluation_mode import in_evaluation_mode
from sepo.forward.head import selected_log_probs
from sepo.forward.shared_prompt import PairLayout
from sepo.forward.sharing_support import batch_layout, layout_for
from sepo.forward.statistics import reference_log_probs, selected_statistics
from sepo.forward.vocabulary import ReferenceStates
from sepo.objectives import Method, StateWeight, preference_loss, select, weigh, weigh_states
from sepo.selection.ties import tie_order
from sepo.training.batch_parts import PartLoss, Parts, part_of, rows_of_pairs
from sepo.training.float_columns import REF_LOGPS, SCORES, batch_floats
from sepo.training.metrics import (
    effective_tokens,
    mean,
    mean_by_side,
    plain_numbers,
    plain_sums,
    reward_metrics,
    token_metrics,
)
from sepo.training.oracle_metrics import oracle_metrics
from sepo.training.reward_columns import TOKEN_REWARDS, token_rewards
from sepo.training.selection_columns import CANDIDATES, SELECTION, STEPS, scorable_tokens


@dataclass(frozen=True)
class StepOutput:
    """The output of a step.

    Args:
        loss: scalar, differentiable: the mean over the pairs of the device batch.
        metrics: floats, by the host's names (``rewards/*``, ``logps/*``) and those of this package.
        sums: total and count of each metric, for its mean over several steps; of ``select/tokens``, per pair.
    """

    loss: Tensor
    metrics: dict[str, float]
    sums: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class StepTokens:
    """The selected tokens of a step, for a whole batch or a part of it, passed to ``watch``.

    Args:
        batch: the batch or the part, see ``preference_step``.
        selection: bool [2B, T - 1], shifted: entry t is the token at t + 1.
        policy_logps: [2B, T - 1], detached; 0 where none was computed.
        ref_logps: the same for the reference, or None.
        weights: [2B, T - 1], the weight of each selected token, 0 elsewhere; None if the method does not weigh tokens.
    """

    batch: Mapping[str, Any]
    selection: Tensor
    policy_logps: Tensor
    ref_logps: Tensor | None
    weights: Tensor | None = None


_TEXT = {"input_ids", "attention_mask"}

Reference = Callable[[], AbstractContextManager[nn.Module]]
"""Function that returns a context manager with the reference model, in its state as the reference."""


def preference_step(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    method: Method,
    reference: Reference | None = None,
    chosen_nll_weight: float = 0.0,
    router_loss_weight: float = 0.0,
    chunk_tokens: int | None = None,
    share_prompts: bool = True,
    parts: Parts | None = None,
    watch: Callable[[StepTokens], None] | None = None,
    counted: int | None = None,
) -> StepOutput:
    """Compute the loss of one device batch of pairs.

    Args:
        model: the policy, as wrapped by the trainer.
        batch: ``input_ids``, ``attention_mask``, ``labels`` [2B, T] (the first B rows chosen; labels -100 except at
            response tokens), ``selection`` [2B, T] if the method selects by stored scores, ``steps`` [2B, T] if it
            selects steps by live ones, ``candidates`` [2B, T] if not all response tokens may be selected,
            ``scores`` [2B, T] if it weighs tokens by stored scores,
            ``token_rewards`` [2B, T] if it has T-REG's regularizer (see
            ``RewardCollator``), ``ref_logps`` [2B, T] if the reference was run beforehand (see ``ReferenceCollator``),
            and other inputs of the forward pass.
        method: the resolved method.
        reference: needed if ``method.needs_reference``; entered once per step, without gradients. None if the batch has
            ``ref_logps`` instead, which is not possible for a method that needs a KL over the vocabulary.
        chosen_nll_weight: weight of the mean negative log-likelihood over all chosen tokens (the host's ``pref_ftx``).
        router_loss_weight: weight of the load-balancing loss of a mixture of experts, the mean over the pairs of each
            pair's own (see ``sepo.forward.router_loss``); not computed if 0.
        chunk_tokens: number of tokens whose logits exist at a time; None for 64 MiB of logits.
        share_prompts: False to run the padded batch even if prompts could be shared.
        parts: splits the batch; None to run it as one.
        watch: called with the selected tokens of each part; parts with weight 0 come first, and are repeated later.
        counted: number of pairs, from the first, that enter loss and metrics, at least 1; the others only fill the
            batch. None in training, where all count; evaluations have the metrics of ``oracle_metrics``, too.

    Returns:
        The loss and its metrics. ``logps/*`` are sums over the computed tokens of a response, ``logps/*_mean`` means
        over the computed tokens of all, ``select/*_ratio`` the selected share
        of the response tokens that may be selected, ``select/tokens`` the selected tokens of the device batch,
        ``select/*_effective`` the effective number of tokens of a response if the method weighs them,
        ``kl/*`` the mean of log pi_policy - log pi_ref over the computed tokens, ``kl/*_full`` over the same tokens the
        mean KL(ref || policy) over the vocabulary if the method needs it, ``treg/*`` the mean token reward over the
        regularized tokens, ``objective/*`` the metrics of the objective.

    Raises:
        SepoError: if a response has no counted token, the selection, reference or token rewards are missing, or the
            reference has another vocabulary and the method needs a KL over it.
    """

    whole, evaluates = bool(router_loss_weight), counted is not None

    def compute(part: Mapping[str, Any]) -> PartLoss:
        tokens = _positions(method, part, chosen_nll_weight=chosen_nll_weight)
        layout = _layout(model, part, tokens, whole=whole) if share_prompts else None
        return _loss(
            model, part, tokens, layout,
            method=method, reference=reference, chosen_nll_weight=chosen_nll_weight,
            router_loss_weight=router_loss_weight, chunk_tokens=chunk_tokens, watch=watch, counted=counted,
            evaluates=evaluates,
        )  # fmt: skip

    divisible = set(_model_inputs(batch)) == _TEXT
    if divisible and counted is not None:
        batch, counted = part_of(batch, range(counted)), None
    if parts is None or not divisible:
        loss, metrics = compute(batch)
    else:
        tokens = _positions(method, batch, chosen_nll_weight=chosen_nll_weight)
        layout = _layout(model, batch, tokens, whole=whole) if share_prompts else None
        loss, metrics = parts.loss(batch, layout, compute)
    sums = plain_sums(metrics)
    return StepOutput(loss=loss, metrics={**plain_numbers(sums), "select/tokens": sums["select/tokens"][0]}, sums=sums)


@dataclass(frozen=True)
class _Positions:
    """Masks of the response tokens, of those that may be selected, of those whose log-probabilities are needed, and of
    those that are selected as far as that is determined before the forward pass; bool [2B, T - 1], shifted. And the
    weights of the latter, of which those with weight 0 are not needed; None if tokens are not weighed, or the weights
    are not determined yet."""

    mask: Tensor
    candidates: Tensor
    wanted: Tensor
    known: Tensor
    weights: Tensor | None = None

    def of(self, rows: list[int]) -> _Positions:
        """Return the masks of some rows."""
        parts = (self.mask, self.candidates, self.wanted, self.known, self.weights)
        return _Positions(*(None if part is None else part[rows] for part in parts))  # type: ignore[arg-type]


def _positions(method: Method, batch: Mapping[str, Any], *, chosen_nll_weight: float) -> _Positions:
    pairs = len(batch["labels"]) // 2
    mask = scorable_tokens(batch)[:, 1:]
    excludes = method.selector is not None and CANDIDATES in batch
    candidates = batch[CANDIDATES][:, 1:] if excludes else mask
    known = _stored_selection(method, batch) if method.needs_scores else candidates
    weights = None
    if method.token_weight is not None and not method.weighs_live:
        weights = _weights(method, pairs, mask=mask, selection=known, scores=_stored_scores(method, batch))
    wanted = _counting(known, weights)
    if chosen_nll_weight or method.needs_response:
        wanted = torch.cat([mask[:pairs], wanted[pairs:]])
    return _Positions(mask, candidates, wanted, known, weights)


def _counting(selection: Tensor, weights: Tensor | None) -> Tensor:
    """Return the selected tokens that enter the loss: those with a weight other than 0, possibly none of a response."""
    return selection if weights is None else selection & (weights != 0)


def _weights(method: Method, pairs: int, **tensors: Tensor | None) -> Tensor:
    """Return the weights of the selected tokens, [2B, T - 1], from tensors of that shape (see ``weigh``)."""
    chosen, rejected = weigh(method, **_by_side(pairs, **tensors))
    assert chosen is not None  # the method weighs tokens
    assert rejected is not None
    return torch.cat([chosen, rejected])


def _state_weigher(method: Method, positions: _Positions) -> Callable[[Tensor], Tensor] | None:
    """Return the function from the states of the wanted positions to their weights, 0 where not selected, or None."""
    weight = method.token_weight
    if not isinstance(weight, StateWeight):
        return None
    lengths = positions.known.sum(-1).tolist()
    inside = positions.known[positions.wanted]
    if bool(inside.all()):
        return lambda states: weigh_states(weight, states, lengths)

    def among_others(states: Tensor) -> Tensor:
        weights = weigh_states(weight, states[inside], lengths)
        return weights.new_zeros(len(states)).masked_scatter(inside, weights)

    return among_others


def _stored_scores(method: Method, batch: Mapping[str, Any]) -> Tensor | None:
    """Return the stored scores that a method weighs tokens by, [2B, T - 1]; None if it does not."""
    if not (method.weighs_by_scores and method.needs_scores):
        return None
    missing = (
        f"the batch has no '{SCORES}', which {method.name} weighs tokens by: collate with selecting_collator, and keep "
        "the columns (remove_unused_columns: false)."
    )
    return batch_floats(batch, SCORES, missing=missing)[:, 1:]


def _model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    not_inputs = ("labels", CANDIDATES, SELECTION, STEPS, SCORES, TOKEN_REWARDS, REF_LOGPS)
    return {name: value for name, value in batch.items() if name not in not_inputs}


def _layout(model: nn.Module, batch: Mapping[str, Any], tokens: _Positions, *, whole: bool) -> PairLayout | None:
    inputs = _model_inputs(batch)
    return layout_for(model, inputs, batch_layout(inputs, tokens.wanted, whole=whole))


def _loss(
    model: nn.Module,
    batch: Mapping[str, Any],
    positions: _Positions,
    layout: PairLayout | None,
    *,
    method: Method,
    reference: Reference | None,
    chosen_nll_weight: float,
    router_loss_weight: float,
    chunk_tokens: int | None,
    watch: Callable[[StepTokens], None] | None,
    counted: int | None,
    evaluates: bool,
) -> PartLoss:
    """Compute the mean loss over the counted pairs of a batch that goes through the model at once."""
    inputs, labels = _model_inputs(batch), batch["labels"]
    pairs = labels.shape[0] // 2
    mask, wanted = positions.mask, positions.wanted
    tokens: dict[str, Any] = {"labels": labels, "wanted": wanted, "chunk_tokens": chunk_tokens, "layout": layout}
    ref_logps, ref_states = _reference_pass(method, reference, batch, inputs, tokens)
    # One pass over the head for all requested statistics.
    policy = selected_statistics(
        model, inputs, reference=ref_states, with_p2=method.needs_log_sum_p2, weigh=_state_weigher(method, positions),
        router_loss=bool(router_loss_weight),
        **tokens,
    )  # fmt: skip
    if counted is not None and counted < pairs:
        rows = rows_of_pairs(range(counted), pairs)
        batch = {name: value[rows] for name, value in batch.items() if name not in inputs or name in _TEXT}
        labels = batch["labels"]
        positions, policy = positions.of(rows), policy.of(rows)
        ref_logps = None if ref_logps is None else ref_logps[rows]
        pairs, mask, wanted = counted, positions.mask, positions.wanted
    logps = policy.logps
    sides = _by_side(pairs, mask=mask, policy_logps=logps, ref_logps=ref_logps)
    selection, weights = positions.known, positions.weights
    if method.token_scorer.live:
        ties = tie_order(labels[:, 1:], mask)
        scored = sides | _by_side(pairs, mask=positions.candidates, steps=_steps(method, batch), ties=ties)
        selection = torch.cat(select(method, **scored))
    if method.weighs_live:
        seen = {"mask": mask, "selection": selection, "policy_logps": logps, "ref_logps": ref_logps}
        weights = _weights(method, pairs, **seen, state_weights=policy.weights)
    counting = _counting(selection, weights)
    if watch is not None:
        watch(StepTokens(batch, counting, logps.detach(), ref_logps, weights))
    rewards = token_rewards(batch)[:, 1:] if method.needs_token_rewards else None
    per_token = {
        "selection": selection,
        "weights": weights,
        "token_rewards": rewards,
        "kl": policy.kl,
        "log_sum_p2": policy.log_sum_p2,
    }
    output = preference_loss(method, **sides, **_by_side(pairs, **per_token))
    loss = output.losses.mean()
    if chosen_nll_weight:
        loss = loss + chosen_nll_weight * _mean_nll(logps[:pairs], mask[:pairs]).mean()
    if policy.router_losses is not None:
        loss = loss + router_loss_weight * policy.router_losses.mean()
    metrics = reward_metrics(output)
    metrics |= token_metrics(logps.detach(), mask=positions.candidates, selection=counting, pairs=pairs)
    metrics |= mean_by_side("logps/{}_mean", logps.detach(), wanted=wanted, pairs=pairs)
    if weights is not None:
        metrics |= effective_tokens(weights, pairs=pairs)
    if rewards is not None:
        regularized = torch.where(counting, rewards, 0.0)
        metrics |= mean_by_side("treg/reward_{}", regularized, wanted=counting, pairs=pairs)
    if evaluates and method.compares_all_tokens and ref_logps is not None:
        metrics |= oracle_metrics(logps - ref_logps, mask, pairs=pairs)
    if ref_logps is not None:
        metrics |= mean_by_side("kl/{}", logps.detach() - ref_logps, wanted=wanted, pairs=pairs)
    if policy.kl is not None:
        metrics |= mean_by_side("kl/{}_full", policy.kl, wanted=wanted, pairs=pairs)
    if policy.router_losses is not None:
        metrics["objective/router_loss"] = mean(policy.router_losses)
    return loss, metrics


def _stored_selection(method: Method, batch: Mapping[str, Any]) -> Tensor:
    if SELECTION not in batch:
        raise SepoError(
            f"the batch has no '{SELECTION}', which {method.name} with the scorer '{method.scorer}' needs: collate "
            "with SelectionCollator, and keep the column (remove_unused_columns: false)."
        )
    return batch[SELECTION][:, 1:]


def _steps(method: Method, batch: Mapping[str, Any]) -> Tensor | None:
    if not method.needs_steps:
        return None
    if STEPS not in batch:
        raise SepoError(
            f"the batch has no '{STEPS}', which {method.name} with the unit 'step' needs: collate with StepCollator, "
            "and keep the columns (remove_unused_columns: false)."
        )
    return batch[STEPS][:, 1:]


def _reference_pass(
    method: Method,
    reference: Reference | None,
    batch: Mapping[str, Any],
    inputs: Mapping[str, Any],
    tokens: dict[str, Any],
) -> tuple[Tensor | None, ReferenceStates | None]:
    """Return the reference's log-probabilities [2B, T] and, if a KL over the vocabulary is needed, its states."""
    if not method.needs_reference:
        return None, None
    if reference is None:
        return _stored_reference(method, batch, tokens["wanted"]), None
    with torch.no_grad(), reference() as model, in_evaluation_mode(model):
        # Both models use the same layout, so that equal weights give equal numbers.
        tokens["layout"] = layout_for(model, inputs, tokens["layout"])
        if method.needs_kl:
            return reference_log_probs(model, inputs, **tokens)
        return selected_log_probs(model, inputs, **tokens), None


def _stored_reference(method: Method, batch: Mapping[str, Any], wanted: Tensor) -> Tensor:
    """Return the stored log-probabilities [2B, T] of a reference, in the form of a forward pass's."""
    missing = f"{method.name} compares the policy with a reference, and none was given; pass reference="
    if method.needs_kl:
        raise SepoError(f"{missing} (stored log-probabilities are not enough: it needs the whole distribution).")
    values = batch_floats(
        batch, REF_LOGPS, missing=f"{missing}, or collate its stored log-probabilities with ReferenceCollator."
    )
    return torch.where(wanted, values[:, 1:], 0.0)


def _by_side(pairs: int, **tensors: Tensor | None) -> dict[str, Any]:
    """Split [2B, T] tensors into arguments of the objectives: ``mask`` into ``chosen_mask`` and ``rejected_mask``,
    ``policy_logps`` into ``policy_chosen_logps`` and ``policy_rejected_logps``."""
    arguments = {}
    for name, tensor in tensors.items():
        owner = next((prefix for prefix in ("policy_", "ref_") if name.startswith(prefix)), "")
        for side, rows in (("chosen", slice(None, pairs)), ("rejected", slice(pairs, None))):
            arguments[f"{owner}{side}_{name.removeprefix(owner)}"] = None if tensor is None else tensor[rows]
    return arguments


def _mean_nll(logps: Tensor, mask: Tensor) -> Tensor:
    """Return the mean negative log-likelihood per response, [B]."""
    return -torch.where(mask, logps, 0.0).sum(-1) / mask.sum(-1)
