"""Regularizers, terms added to a pair's loss: T-REG's token rewards, and the likelihood of the chosen response."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sepo.objectives.rewards import ResponseReward
from sepo.objectives.sides import Side, present


@dataclass(frozen=True)
class Term:
    """A regularizer's contribution to the loss [B], and its metrics ([B], detached)."""

    loss: Tensor
    metrics: dict[str, Tensor]


class Regularizer(ABC):
    """A term added to the loss of every pair."""

    needs_token_rewards: ClassVar[bool] = False

    @property
    def averages(self) -> bool:
        """Whether the term is a mean over the selected tokens, whatever the reward is."""
        return False

    @property
    def needs_response(self) -> bool:
        """Whether the term reads tokens that were not selected."""
        return False

    @abstractmethod
    def term(self, *, reward: ResponseReward, slope: Tensor, chosen: Side, rejected: Side) -> Term:
        """Return the term; ``slope`` [B] (detached) is the absolute derivative of each pair's preference loss."""


@dataclass(frozen=True)
class TokenRewardRegularizer(Regularizer):
    """T-REG: alpha w (L_reg(y_w) + L_reg(y_l)), L_reg = -scale (sum or mean) r_hat log pi_theta.

    Source: T-REG (arXiv 2412.02685) Eq. 1 and 2. L_reg scales and reduces tokens like the reward: beta times the sum
    for DPO. The weight w is detached: with ``sequence`` weighting the slope of the pair's preference loss,
    sigmoid(-beta D) for DPO (Eq. 2) and, following footnote 6, the matching coefficient for every other method (for
    SimPO, which the paper does not spell out: sigmoid(-(beta (m_w - m_l) - gamma))); with ``static`` weighting 1 (the
    paper's ablation). Under token selection the sums run over the selected tokens, with their token weights.
    """

    needs_token_rewards: ClassVar[bool] = True
    alpha: float
    weighting: Literal["sequence", "static"] = "sequence"

    def term(self, *, reward: ResponseReward, slope: Tensor, chosen: Side, rejected: Side) -> Term:
        """Return the term, with the metrics ``treg_weight`` (w) and ``treg_loss`` (the added loss)."""
        weight = torch.ones_like(slope) if self.weighting == "static" else slope
        loss = -self.alpha * weight * (reward.credit(chosen) + reward.credit(rejected))
        return Term(loss=loss, metrics={"treg_weight": weight, "treg_loss": loss.detach()})


@dataclass(frozen=True)
class ChosenNll(Regularizer):
    """Weight times the mean negative log-likelihood of the chosen response.

    ``over="selected"`` is the likelihood term of RRHF (there a sum) and of ORPO (Eq. 6), over the m_w that the link
    reads; ``over="response"`` covers all chosen tokens, selected or not (LLaMA-Factory's ``pref_ftx``).
    """

    weight: float
    over: Literal["selected", "response"] = "selected"

    @property
    def averages(self) -> bool:
        """Whether ``over`` is ``selected``."""
        return self.over == "selected"

    @property
    def needs_response(self) -> bool:
        """Whether ``over`` is ``response``."""
        return self.over == "response"

    def term(self, *, reward: ResponseReward, slope: Tensor, chosen: Side, rejected: Side) -> Term:
        """Return the term; the metric ``nll_selected`` or ``nll_response`` is its unweighted value."""
        if self.over == "selected":
            nll = -chosen.total(chosen.policy, average=True)
        else:
            n_tokens = present(chosen.response_mask, "chosen_mask").sum(dim=-1)
            nll = -present(chosen.response_policy, "chosen_mask").sum(dim=-1) / n_tokens
        return Term(loss=self.weight * nll, metrics={f"nll_{self.over}": nll.detach()})
