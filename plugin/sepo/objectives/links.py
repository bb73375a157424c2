"""Link functions from a pair's two rewards to a loss.

A link may transform each of the two rewards (``term``), and maps their difference h to a loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

LARGEST_MEAN_LOGP = -1e-6
"""Upper clamp of ORPO's mean log-probability in nats: the odds p / (1 - p) are infinite at p = 1."""


class Link(ABC):
    """A loss as a function of the difference h = term(chosen) - term(rejected)."""

    needs_probabilities: ClassVar[bool] = False
    """True if a reward must be the logarithm of a probability."""

    def term(self, reward: Tensor) -> Tensor:
        """Return the response's term in the difference, [B]; its reward unless overridden."""
        return reward

    @abstractmethod
    def loss(self, h: Tensor) -> Tensor:
        """Return the loss [B] of the difference ``h`` [B]."""

    @abstractmethod
    def slope(self, h: Tensor) -> Tensor:
        """Return the absolute derivative of ``loss`` at ``h``, [B], detached: the weight of the pair (T-REG)."""


@dataclass(frozen=True)
class Logistic(Link):
    """-(1 - e) log sigmoid(h - m) - e log sigmoid(-(h - m)): DPO and its relatives.

    Sources: DPO (Rafailov et al. 2023) Eq. 7; label smoothing e: conservative DPO (Mitchell 2023); ``robust``:
    unbiased under label flips with probability e, the second term with + and all over 1 - 2 e (Chowdhury et al. 2024,
    arXiv 2403.00409); ``margin`` m: SimPO's gamma (Meng et al. 2024, arXiv 2405.14734).
    """

    margin: float = 0.0
    label_smoothing: float = 0.0
    robust: bool = False

    @property
    def _weights(self) -> tuple[float, float]:
        """The weights of -log sigmoid(h - m) and -log sigmoid(-(h - m))."""
        e = self.label_smoothing
        return ((1 - e) / (1 - 2 * e), -e / (1 - 2 * e)) if self.robust else (1 - e, e)

    def loss(self, h: Tensor) -> Tensor:
        """Return the loss [B]; the formula is in the class docstring."""
        right, wrong = self._weights
        loss = -right * logsigmoid(h - self.margin)
        return loss - wrong * logsigmoid(self.margin - h) if wrong else loss

    def slope(self, h: Tensor) -> Tensor:
        """Return |right sigmoid(-(h - m)) - wrong sigmoid(h - m)|; sigmoid(-(h - m)) if e is 0 (T-REG Eq. 2)."""
        right, wrong = self._weights
        h = h.detach() - self.margin
        return (right * torch.sigmoid(-h) - wrong * torch.sigmoid(h)).abs()


@dataclass(frozen=True)
class Hinge(Link):
    """relu(1 - h). Source: SLiC (Zhao et al. 2023, arXiv 2305.10425) on DPO's rewards."""

    def loss(self, h: Tensor) -> Tensor:
        """Return the loss [B]; the formula is in the class docstring."""
        return (1 - h).relu()

    def slope(self, h: Tensor) -> Tensor:
        """Return 1 inside the margin, else 0."""
        return (h.detach() < 1).to(h.dtype)


@dataclass(frozen=True)
class Square(Link):
    """(h - target)^2 with target 1 / (2 beta). Source: IPO (Azar et al. 2024, arXiv 2310.12036) Eq. 17."""

    target: float

    def loss(self, h: Tensor) -> Tensor:
        """Return the loss [B]; the formula is in the class docstring."""
        return (h - self.target).square()

    def slope(self, h: Tensor) -> Tensor:
        """Return 2 |h - target|."""
        return 2 * (h.detach() - self.target).abs()


@dataclass(frozen=True)
class Rank(Link):
    """relu(-h). Source: RRHF (Yuan et al. 2023, arXiv 2304.05302), its ranking loss."""

    def loss(self, h: Tensor) -> Tensor:
        """Return the loss [B]; the formula is in the class docstring."""
        return (-h).relu()

    def slope(self, h: Tensor) -> Tensor:
        """Return 1 if the pair is ranked wrongly, else 0."""
        return (h.detach() < 0).to(h.dtype)


@dataclass(frozen=True)
class NoLink(Link):
    """0: no preference between the responses. For objectives that consist of regularizers."""

    def loss(self, h: Tensor) -> Tensor:
        """Return zeros [B]."""
        return torch.zeros_like(h)

    def slope(self, h: Tensor) -> Tensor:
        """Return zeros [B]."""
        return torch.zeros_like(h)


@dataclass(frozen=True)
class Odds(Link):
    """-weight log sigmoid(log-odds ratio of p = exp(reward)). Source: ORPO (Hong et al. 2024, arXiv 2403.07691) Eq. 7.

    Deviation: rewards are clamped to ``LARGEST_MEAN_LOGP``, and clamped ones carry no gradient, so the loss of a
    response whose tokens all have log-probability 0 is finite.
    """

    needs_probabilities: ClassVar[bool] = True
    weight: float

    def term(self, reward: Tensor) -> Tensor:
        """Return the log odds log p - log(1 - p), [B]."""
        reward = reward.clamp(max=LARGEST_MEAN_LOGP)
        # expm1 keeps 1 - p exact for p near 1. For p near 0 the logarithm rounds to 0, which is below one unit in
        # the last place of ``reward``, so the usual second branch (log1p) would change nothing.
        return reward - torch.log(-torch.expm1(reward))

    def loss(self, h: Tensor) -> Tensor:
        """Return the loss [B]; the formula is in the class docstring."""
        return -self.weight * logsigmoid(h)

    def slope(self, h: Tensor) -> Tensor:
        """Return weight times sigmoid(-h)."""
        return self.weight * torch.sigmoid(-h.detach())
