"""The output of a preference loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PreferenceOutput:
    """Losses, rewards, selections and metrics of a batch of B pairs.

    Attributes:
        losses: [B], differentiable; not reduced.
        chosen_rewards: [B], detached; with ``rejected_rewards`` the two terms whose difference is the input of the
            link: scaled by beta or gamma if the method scales them before the link, clamped (MinorDPO's rejected one),
            with the penalty (DPOP's chosen one), with their KL (TDPO), as log odds (ORPO). A pair is ranked correctly
            if chosen > rejected.
        rejected_rewards: [B], detached.
        chosen_selection: [B, Tw] bool, the optimized tokens: selected, with a weight other than 0.
        rejected_selection: [B, Tl] bool.
        metrics: [B] detached metrics of the method's parts, by name: ``rejected_clamped``, ``chosen_penalised`` (0 or
            1), ``chosen_kl``, ``rejected_kl`` (nats), ``pair_weight``, ``treg_weight``, ``treg_loss``,
            ``nll_selected``, ``nll_response`` (nats per token) and, with any regularizer, ``regularizer_share`` in
            [0, 1]: the absolute regularization divided by itself plus the absolute preference loss; ``empty_pair`` (1
            for a pair with loss 0, as a response has no selected token); of a sum of objectives the loss of each,
            ``<objective>_loss``, and its metrics as ``<objective>_<metric>``.
        chosen_weights: [B, Tw] weight of each token, detached, 0 where not optimized; None if all are 1.
        rejected_weights: [B, Tl].
    """

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    chosen_selection: Tensor
    rejected_selection: Tensor
    metrics: Mapping[str, Tensor]
    chosen_weights: Tensor | None = None
    rejected_weights: Tensor | None = None
