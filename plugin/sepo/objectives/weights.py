"""Weights of pairs: WPO's importance weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sepo.objectives.sides import Side, present


class PairWeight(ABC):
    """A factor on each pair's preference loss."""

    needs_log_sum_p2: ClassVar[bool] = False
    """True if ``log_sum_p2`` of both sides is needed."""
    averages: ClassVar[bool] = False
    """True if the weight depends on a mean over the selected tokens."""

    @abstractmethod
    def weight(self, *, chosen: Side, rejected: Side) -> Tensor:
        """Return the weights [B], at least 0, detached."""


@dataclass(frozen=True)
class PolicyLikelihood(PairWeight):
    """w = min(1, exp(a_w + a_l)), detached; a = mean over the selected tokens of log pi - log sum_v pi(v)^2.

    Source: WPO (Zhou et al. 2024, arXiv 2406.11827), sampled alignment, clamped and averaged as in its authors' code:
    the less likely the responses are under the current policy, the lower the weight of the pair.
    """

    needs_log_sum_p2: ClassVar[bool] = True
    averages: ClassVar[bool] = True

    def weight(self, *, chosen: Side, rejected: Side) -> Tensor:
        """Return the weights [B] in (0, 1], detached."""
        name = "chosen_log_sum_p2 and rejected_log_sum_p2"
        total = self._alignment(chosen, name) + self._alignment(rejected, name)
        return total.clamp(max=0.0).exp()  # clamped before the exponential, which could overflow

    @staticmethod
    def _alignment(side: Side, name: str) -> Tensor:
        return side.total(side.policy.detach() - present(side.log_sum_p2, name).detach(), average=True)
