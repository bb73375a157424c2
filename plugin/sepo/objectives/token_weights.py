"""Weights of tokens in the rewards of a response: by position, by length, from token scores or from hidden states.

A weight is a number per token, detached. The selection is its support: tokens that are not selected have weight 0, and
a selected token of weight 0 counts as not selected. A summed reward is sum w x, a mean one sum w x / sum w.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from sepo.errors import SepoError
from sepo.objectives.settings import Number, Setting, Value, check_declared
from sepo.objectives.transport import transport_weights


class WeightError(SepoError):
    """A token weight that a method refuses.

    Args:
        side: ``chosen`` or ``rejected``.
        row: index of the response among those of its side.
        position: index of the token in the row.
        found: what the token has, in words.
        expected: what is expected, in words.
    """

    def __init__(self, side: str, row: int, position: int, *, found: str, expected: str) -> None:
        self.side, self.row, self.position, self.found, self.expected = side, row, position, found, expected
        super().__init__(
            f"the {side} response in row {row} has the {found} at position {position}, expected {expected}: check the "
            "token scores of this row."
        )


@dataclass(frozen=True)
class WeighedTokens:
    """One side of a batch (all chosen or all rejected responses), as the input of a token weight.

    Attributes:
        mask: [B, T] bool, True where a response token counts.
        selection: [B, T] bool, the selected tokens.
        other_mask: [B, T'] bool, the counted tokens of the other responses of the same pairs.
        chosen: True for chosen responses, False for rejected ones.
        scale: the factor of the method on its rewards, beta or gamma.
        scores: [B, T] token scores, detached, float32 or wider, 0 where a token is not selected; None unless the weight
            reads them.
        state_weights: [B, T] result of ``StateWeight.of_pair``, 0 where not selected; None for other weights.
    """

    mask: Tensor
    selection: Tensor
    other_mask: Tensor
    chosen: bool
    scale: float
    scores: Tensor | None = None
    state_weights: Tensor | None = None

    @cached_property
    def positions(self) -> Tensor:
        """Position of each counted token in its response, from 1, int64 [B, T]."""
        return self.mask.cumsum(dim=-1)

    @property
    def other_lengths(self) -> Tensor:
        """Number of counted tokens of the other response, int64 [B]."""
        return self.other_mask.sum(dim=-1)

    def read_scores(self) -> Tensor:
        """Return the scores; raise if there are none."""
        if self.scores is None:
            raise SepoError(
                "the token weight reads scores, and none were given: pass chosen_scores= and rejected_scores=."
            )
        return self.scores


class TokenWeight(ABC):
    """A weight for every token. Subclasses are frozen dataclasses of plain values, hence comparable and picklable."""

    reads_scores: ClassVar[bool] = False
    """True if the weights depend on the token scorer's scores."""

    reads_states: ClassVar[bool] = False
    """True if the weights depend on the policy's hidden states, as those of a ``StateWeight`` do."""

    score_bounds: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    """The lowest and highest score for which the weight is defined."""

    def takes(self, bounds: tuple[float, float]) -> bool:
        """Return whether the weight is defined for all scores within ``bounds``."""
        return self.score_bounds[0] <= bounds[0] and bounds[1] <= self.score_bounds[1]

    def can_be_negative(self, bounds: tuple[float, float] | None) -> bool:
        """Return whether a weight can be below 0, which is refused in a mean.

        Args:
            bounds: the lowest and highest possible score, or None if unknown.
        """
        return False

    @abstractmethod
    def weights(self, tokens: WeighedTokens) -> Tensor:
        """Return the weights [B, T] in any floating dtype; they are detached, and read at selected tokens only."""


@dataclass(frozen=True)
class PositionDecay(TokenWeight):
    """decay^t for token t of the response, counted from 1.

    Source: D2PO (arXiv 2502.14340), temporal decay, as in its authors' code. The position counts all tokens of the
    response, selected or not.
    """

    decay: float

    def weights(self, tokens: WeighedTokens) -> Tensor:
        """Return the weights, in (0, 1], float64."""
        return torch.pow(self.decay, tokens.positions.double())


@dataclass(frozen=True)
class LengthDiscount(TokenWeight):
    """1 for tokens up to the length of the pair's shorter response, alpha for those after it.

    Source: LD-DPO (arXiv 2409.06411), for policy and reference alike. Lengths count all tokens of the responses,
    selected or not.
    """

    alpha: float

    def weights(self, tokens: WeighedTokens) -> Tensor:
        """Return the weights, 1 or alpha, float64."""
        within = tokens.positions <= tokens.other_lengths.unsqueeze(-1)
        return torch.where(within, 1.0, torch.tensor(self.alpha, dtype=torch.float64, device=within.device))


@dataclass(frozen=True)
class RewardScaling(TokenWeight):
    """1 + alpha beta u on chosen and 1 - alpha beta u on rejected tokens, u the token's score, beta the reward's scale.

    Source: TGDPO (arXiv 2506.14574) with u = log pi_oracle - log pi_reference of a DPO oracle. As in the authors' code
    the weights are not clamped, so they can be negative.
    """

    reads_scores: ClassVar[bool] = True
    alpha: float

    def can_be_negative(self, bounds: tuple[float, float] | None) -> bool:
        """Return True."""
        return True

    def weights(self, tokens: WeighedTokens) -> Tensor:
        """Return the weights."""
        slope = self.alpha * tokens.scale
        return 1 + (slope if tokens.chosen else -slope) * tokens.read_scores()


@dataclass(frozen=True)
class Importance(TokenWeight):
    """The score, negated on rejected tokens, clamped to [-clip, clip] and mapped linearly to [low, high].

    Source: TIS-DPO (arXiv 2410.04350) with the score log pi+ - log pi- of a positive and a negative model; the
    transform ``threshold_and_scale`` of its authors' code, whose default transform makes every weight 1.

    Raises:
        SepoError: if ``low`` is above ``high``.
    """

    reads_scores: ClassVar[bool] = True
    clip: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise SepoError(
                f"the importance weights lie between low = {self.low:g} and high = {self.high:g}, expected low <= "
                "high: exchange them."
            )

    def weights(self, tokens: WeighedTokens) -> Tensor:
        """Return the weights, in [low, high]."""
        scores = tokens.read_scores()
        clamped = (scores if tokens.chosen else -scores).clamp(-self.clip, self.clip)
        return self.low + (clamped + self.clip) * ((self.high - self.low) / (2 * self.clip))


@dataclass(frozen=True)
class Critical(TokenWeight):
    """1 on chosen tokens, 1 - s on rejected ones, s the token's score in [0, 1].

    Source: cDPO (arXiv 2411.19943): the score is low for critical tokens, those that lead to a wrong answer.

    Raises:
        WeightError: if the score of a rejected token is outside [0, 1].
    """

    reads_scores: ClassVar[bool] = True
    score_bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def weights(self, tokens: WeighedTokens) -> Tensor:
        """Return the weights, in [0, 1]."""
        scores = tokens.read_scores()
        if tokens.chosen:
            return torch.ones_like(scores)
        low, high = self.score_bounds
        outside = tokens.selection & ~((scores >= low) & (scores <= high))
        if bool(outside.any()):
            row, position = (int(index) for index in outside.nonzero()[0])
            raise WeightError(
                "rejected", row, position, found=f"score {float(scores[row, position]):g}",
                expected="a number in [0, 1], since token_weight critical is 1 - score",
            )  # fmt: skip
        return 1 - scores


@dataclass(frozen=True)
class ScoreWeight(TokenWeight):
    """The scores themselves. No source: for weights that a team computes itself.

    They can be negative unless the token scorer declares otherwise (``TokenScorer.bounds``).
    """

    reads_scores: ClassVar[bool] = True

    def can_be_negative(self, bounds: tuple[float, float] | None) -> bool:
        """Return whether a score can be."""
        return bounds is None or bounds[0] < 0

    def weights(self, tokens: WeighedTokens) -> Tensor:
        """Return the scores."""
        return tokens.read_scores()


class StateWeight(TokenWeight):
    """A weight from the policy's hidden states at the tokens of both responses of a pair.

    It is computed inside the forward pass, where the states are; no second pass is run, and no state is kept. The state
    of a token is the input of the head from which the token is predicted. The tokens are those that stored scores
    select; without stored scores all counted ones, as a live scorer selects after the forward pass.
    """

    reads_states: ClassVar[bool] = True

    @abstractmethod
    def of_pair(self, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the weights [n] and [m] from the states [n, H] and [m, H] of the two responses' tokens.

        Runs under ``torch.no_grad``; either may have no token.
        """

    def weights(self, tokens: WeighedTokens) -> Tensor:
        """Return the weights that were computed from the states."""
        if tokens.state_weights is None:
            raise SepoError(
                f"the token weight {type(self).__name__} reads hidden states, and none were given: pass chosen_states= "
                "and rejected_states=."
            )
        return tokens.state_weights


@dataclass(frozen=True)
class Transport(StateWeight):
    """The marginals of an unbalanced optimal transport plan between the responses' states.

    Source: OTPO (arXiv 2505.18720), with its authors' code; see ``transport_weights``.
    """

    reg: float
    reg_m: float

    def of_pair(self, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights, at least 0; those of each response sum to the number of tokens of the shorter one."""
        return transport_weights(chosen, rejected, reg=self.reg, reg_m=self.reg_m)


@dataclass(frozen=True)
class WeightRule:
    """A way to weigh tokens: its settings with defaults and ranges, and how the weight is built.

    The object of an entry point in the group ``sepo.weights``. The entry point's name is the value of ``token_weight``.
    In every objective, the hyperparameter (and the recipe key) of a setting is ``<name>_<setting>``.

    Attributes:
        build: called with all settings by name; returns the TokenWeight.
        settings: ``Number``, ``Whole``, ``Flag`` or ``Choice``, by name.

    Raises:
        SepoError: if a default is out of its range, a name is not a Python name, or ``build`` does not take the
            settings.
    """

    build: Callable[..., TokenWeight]
    settings: Mapping[str, Setting] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_declared(self.build, self.settings, passed=tuple(self.settings))

    def built(self, values: Mapping[str, Value] | None = None, *, what: str = "a token weight") -> TokenWeight:
        """Return the weight.

        Args:
            values: the settings by name; None for the defaults.
            what: the weight in words, for the error.

        Raises:
            SepoError: if ``build`` returned anything but a TokenWeight.
        """
        if values is None:
            values = {name: setting.default for name, setting in self.settings.items()}
        weight = self.build(**values)
        if not isinstance(weight, TokenWeight):
            raise SepoError(
                f"build of {what} returned {type(weight).__name__}, expected a sepo.objectives.TokenWeight."
            )
        return weight

    @property
    def reads_scores(self) -> bool:
        """Whether the weights read token scores; all tokens are then selected by default."""
        return self.built().reads_scores


def weight_record(weight: TokenWeight) -> dict[str, Any]:
    """Return a weight as plain JSON values: its ``name`` (of the class, if it is registered) and its settings."""
    name = next((name for name, rule in WEIGHTS.items() if rule.build is type(weight)), type(weight).__name__)
    return {"name": name, **(asdict(weight) if is_dataclass(weight) else {})}


def _share(default: float) -> Number:
    return Number(default, low=0.0, high=1.0, low_included=True, high_included=True)


def _non_negative(default: float) -> Number:
    return Number(default, low=0.0, low_included=True)


NO_WEIGHT = "none"
"""Value of ``token_weight`` for no weights: every selected token counts alike."""

WEIGHTS: Mapping[str, WeightRule] = MappingProxyType(
    {
        "position": WeightRule(PositionDecay, {"decay": Number(0.98, low=0.0, high=1.0, high_included=True)}),
        "length": WeightRule(LengthDiscount, {"alpha": _share(0.5)}),
        "reward": WeightRule(RewardScaling, {"alpha": _non_negative(0.5)}),
        "importance": WeightRule(
            Importance,
            {"clip": Number(1.5, low=0.0), "low": _non_negative(0.7), "high": Number(1.3, low=0.0)},
        ),
        "critical": WeightRule(Critical),
        "scores": WeightRule(ScoreWeight),
        "transport": WeightRule(
            Transport, {"reg": Number(1.0, low=0.001, low_included=True), "reg_m": Number(0.2, low=0.0)}
        ),
    }
)
"""The built-in weights by name, with the defaults of their papers."""
