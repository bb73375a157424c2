"""One preference step: select, run the policy where it is needed, compute loss and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sepo.errors import SepoError
from sepo.forward.head import selected_log_probs
from sepo.objectives import Method, preference_loss
from sepo.training.collator import IGNORE_INDEX, SELECTION


@dataclass(frozen=True)
class StepOutput:
    """What a step gives its trainer.

    Args:
        loss: scalar, differentiable: the mean over the pairs of the device batch.
        metrics: plain floats, the host's names (``rewards/*``, ``logps/*``) and ``select/*``.
    """

    loss: Tensor
    metrics: dict[str, float]


def preference_step(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    method: Method,
    chosen_nll_weight: float = 0.0,
    chunk_tokens: int | None = None,
) -> StepOutput:
    """Compute the loss of one device batch of pairs.

    Args:
        model: the policy, as the trainer wrapped it.
        batch: ``input_ids``, ``attention_mask``, ``labels`` [2B, T] (the first B rows chosen; labels -100 where no
            response token is), ``selection`` [2B, T] where the method selects, and what else the forward takes.
        method: the resolved method.
        chosen_nll_weight: weight of the mean negative log-likelihood over all chosen tokens (the host's ``pref_ftx``).
        chunk_tokens: tokens whose logits exist at a time; None for 64 MiB of logits.

    Returns:
        The loss and its metrics. ``logps/*`` are sums over the tokens that were computed, ``select/*_ratio`` the
        selected share of response tokens, ``select/tokens`` the selected tokens of the device batch.

    Raises:
        SepoError: a response without a counted token, a missing selection, or a method that needs what this step does
            not compute (a reference, token rewards).
    """
    inputs = {name: value for name, value in batch.items() if name not in ("labels", SELECTION)}
    labels: Tensor = batch["labels"]
    pairs = labels.shape[0] // 2
    mask = labels[:, 1:] != IGNORE_INDEX
    if method.selects and SELECTION not in batch:
        raise SepoError(
            f"the batch has no '{SELECTION}', which {method.name} with the scorer '{method.scorer}' needs: collate "
            "with SelectionCollator, and keep the column (remove_unused_columns: false)."
        )
    selection = batch[SELECTION][:, 1:] if method.selects else mask
    chosen_mask, rejected_mask = mask.split(pairs)
    chosen_selection, rejected_selection = selection.split(pairs)
    whole_chosen = chosen_nll_weight or method.needs_response
    wanted = torch.cat([chosen_mask if whole_chosen else chosen_selection, rejected_selection])
    logps = selected_log_probs(
        model,
        inputs,
        labels=labels,
        wanted=wanted,
        chunk_tokens=chunk_tokens,
    )
    chosen_logps, rejected_logps = logps.split(pairs)
    output = preference_loss(
        method,
        policy_chosen_logps=chosen_logps,
        policy_rejected_logps=rejected_logps,
        chosen_mask=chosen_mask,
        rejected_mask=rejected_mask,
        chosen_selection=chosen_selection,
        rejected_selection=rejected_selection,
    )
    loss = output.losses.mean()
    if chosen_nll_weight:
        loss = loss + chosen_nll_weight * _mean_nll(chosen_logps, chosen_mask).mean()
    metrics = {
        "rewards/chosen": output.chosen_rewards.mean(),
        "rewards/rejected": output.rejected_rewards.mean(),
        "rewards/accuracies": (output.chosen_rewards > output.rejected_rewards).float().mean(),
        "rewards/margins": (output.chosen_rewards - output.rejected_rewards).mean(),
        "logps/chosen": chosen_logps.detach().sum(-1).mean(),
        "logps/rejected": rejected_logps.detach().sum(-1).mean(),
        "select/chosen_ratio": chosen_selection.sum() / chosen_mask.sum(),
        "select/rejected_ratio": rejected_selection.sum() / rejected_mask.sum(),
        "select/tokens": chosen_selection.sum() + rejected_selection.sum(),
    }
    values = torch.stack([value.detach().float() for value in metrics.values()]).tolist()  # one synchronization
    return StepOutput(loss=loss, metrics=dict(zip(metrics, values, strict=True)))


def _mean_nll(logps: Tensor, mask: Tensor) -> Tensor:
    """Mean negative log-likelihood per response, [B]."""
    return -torch.where(mask, logps, 0.0).sum(-1) / mask.sum(-1)
