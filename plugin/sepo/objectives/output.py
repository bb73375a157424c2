"""What a preference loss returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PreferenceOutput:
    """Losses and bookkeeping of a batch of B pairs.

    Attributes:
        losses: [B], differentiable; the caller reduces.
        chosen_rewards: [B], detached; with ``rejected_rewards`` the two terms whose difference the link sees, so scaled
            by beta or gamma where the method scales them there, MinorDPO's rejected one clamped, DPOP's chosen one
            with its penalty, TDPO's with their KL, ORPO's as log odds. A pair is ranked rightly where
            chosen > rejected.
        rejected_rewards: [B], detached.
        chosen_selection: [B, Tw] bool, what was optimized.
        rejected_selection: [B, Tl] bool.
        metrics: [B] detached extras of the method's parts, by name: ``rejected_clamped``, ``chosen_penalised`` (0 or
            1), ``chosen_kl``, ``rejected_kl`` (nats), ``pair_weight``, ``treg_weight``, ``treg_loss``,
            ``nll_selected``, ``nll_response`` (nats per token) and, with any regularizer, ``regularizer_share`` in
            [0, 1]: the absolute regularizers over themselves plus the absolute preference loss.
    """

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    chosen_selection: Tensor
    rejected_selection: Tensor
    metrics: Mapping[str, Tensor]
