"""Penalties on a pair's rewards before their difference is taken: MinorDPO's clamp, DPOP's term, TDPO's KL terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sepo.objectives.rewards import ResponseReward
from sepo.objectives.sides import Side, present


@dataclass(frozen=True)
class PairRewards:
    """The unscaled rewards [B] of both responses, and the penalty's metrics ([B], detached)."""

    chosen: Tensor
    rejected: Tensor
    metrics: dict[str, Tensor]


class Penalty(ABC):
    """A map from the unscaled rewards of a pair to the penalized ones."""

    needs_kl: ClassVar[bool] = False
    compares_with_reference: ClassVar[bool] = True
    """True if the penalty is defined for log-ratios to a reference only."""

    @abstractmethod
    def apply(self, rewards: PairRewards, *, reward: ResponseReward, chosen: Side, rejected: Side) -> PairRewards:
        """Return the penalized rewards; ``reward`` defines the reduction over tokens."""


@dataclass(frozen=True)
class NoPenalty(Penalty):
    """The identity: rewards are left unchanged."""

    compares_with_reference: ClassVar[bool] = False

    def apply(self, rewards: PairRewards, *, reward: ResponseReward, chosen: Side, rejected: Side) -> PairRewards:
        """Return ``rewards``."""
        return rewards


@dataclass(frozen=True)
class RejectedClamp(Penalty):
    """MinorDPO: max(0, r_l), so that a rejected response already below the reference gets no further gradient.

    Source: MinorDPO (arXiv 2408.09834) Eq. 6. At r_l = 0 exactly, which is every pair before the first update, the
    gradient of the rejected side is 0 (the paper stops it where pi_theta(y_l) <= pi_ref(y_l), section 3.4).
    """

    def apply(self, rewards: PairRewards, *, reward: ResponseReward, chosen: Side, rejected: Side) -> PairRewards:
        """Clamp the rejected reward; the metric ``rejected_clamped`` is 1 for clamped pairs."""
        clamped = (rewards.rejected <= 0).to(rewards.rejected.dtype)
        metrics = rewards.metrics | {"rejected_clamped": clamped}
        return PairRewards(chosen=rewards.chosen, rejected=rewards.rejected.relu(), metrics=metrics)


@dataclass(frozen=True)
class ChosenShortfall(Penalty):
    """DPOP: r_w - lambda max(0, log pi_ref(y_w) - log pi_theta(y_w)), which keeps the chosen likelihood from falling.

    Source: DPOP (Pal et al. 2024, arXiv 2402.13228), in the form of MinorDPO's Eq. 5, with lambda inside beta.
    """

    weight: float

    def apply(self, rewards: PairRewards, *, reward: ResponseReward, chosen: Side, rejected: Side) -> PairRewards:
        """Lower the chosen reward; the metric ``chosen_penalised`` is 1 if it is below the reference."""
        fell = (rewards.chosen < 0).to(rewards.chosen.dtype)
        metrics = rewards.metrics | {"chosen_penalised": fell}
        shortfall = (-rewards.chosen).relu()
        return PairRewards(chosen=rewards.chosen - self.weight * shortfall, rejected=rewards.rejected, metrics=metrics)


@dataclass(frozen=True)
class SequentialKl(Penalty):
    """TDPO: the margin D becomes D - weight (KL_l - KL_w), with KL(ref || policy) reduced like the reward.

    Source: TDPO (Zeng et al. 2024, arXiv 2404.11999): TDPO1 has weight 1, TDPO2 weight alpha and no gradient through
    the chosen KL. Weight times KL is added to both sides, which gives that margin and, up to alpha, the rewards that
    the authors' code logs.
    """

    needs_kl: ClassVar[bool] = True
    weight: float
    detach_chosen: bool

    def apply(self, rewards: PairRewards, *, reward: ResponseReward, chosen: Side, rejected: Side) -> PairRewards:
        """Add the KL terms; the metrics ``chosen_kl`` and ``rejected_kl`` are the KL in nats."""
        chosen_kl = chosen.total(present(chosen.kl, "chosen_kl"), average=reward.average)
        rejected_kl = rejected.total(present(rejected.kl, "rejected_kl"), average=reward.average)
        metrics = rewards.metrics | {"chosen_kl": chosen_kl.detach(), "rejected_kl": rejected_kl.detach()}
        return PairRewards(
            chosen=rewards.chosen + self.weight * (chosen_kl.detach() if self.detach_chosen else chosen_kl),
            rejected=rewards.rejected + self.weight * rejected_kl,
            metrics=metrics,
        )
