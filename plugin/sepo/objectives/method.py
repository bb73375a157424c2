"""The resolved method: a frozen composition of parts, which determines the inputs that the loss needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import Tensor

from sepo.errors import SepoError
from sepo.objectives.links import Link
from sepo.objectives.regularizers import Regularizer
from sepo.objectives.reward_penalties import NoPenalty, Penalty
from sepo.objectives.rewards import ResponseReward
from sepo.objectives.settings import Value
from sepo.objectives.token_weights import TokenWeight, weight_record
from sepo.objectives.weights import PairWeight
from sepo.selection.scopes import DEFAULT_SPAN_TOKENS, SCOPES
from sepo.selection.scorer_inputs import LiveTokens, RowTokens, StoredScorer
from sepo.selection.scores import alignment_scores, probability_scores, uncertainty_scores
from sepo.selection.select import COUNTS, RULES
from sepo.selection.units import UNITS

SUM = "+"
"""Separator of the names in the name of a sum of objectives, ``dpo+orpo``."""


@dataclass(frozen=True)
class TokenScorer:
    """The source of token scores; also the object of an entry point in the group ``sepo.selectors``.

    A registered scorer has one of the two functions, defined at module level (methods are picklable)::

        rare = TokenScorer("rare", from_logps=surprise, rejected_largest=True)

    Attributes:
        name: ``oracle``, ``contrastive``, ``file``, ``random``, ``policy_ref``, ``confidence``, ``probability``,
            ``none``, or a registered name (replaced by the entry point's name).
        stored: True if the scores exist before the forward pass, so that tokens can be selected first; always True
            with ``from_row``.
        rejected_largest: which scores of a rejected response are selected. False: the lowest, for rewards (SePO section
            3.2). True: the highest, if the scorer itself flips the sign for rejected (Selective-DPO Eq. 6) or scores
            both sides alike (``confidence``). In chosen responses the highest are always selected.
        compares_with_reference: True if ``from_logps`` also reads the reference's log-probabilities.
        from_logps: live scores from the log-probabilities of the step, [B, T] for the given batch.
        from_row: stored scores from the tokens and their texts, one number per response token.
        from_batch: stored scores that are kept in a score store; the object of an entry point in ``sepo.scorers``.
        bounds: the lowest and highest possible score, checked in use; None if unknown. Weights that read scores depend
            on it: only scores of at least 0 can be the weights of a mean.

    Raises:
        SepoError: if parts contradict each other.
    """

    name: str
    stored: bool = False
    rejected_largest: bool = False
    compares_with_reference: bool = False
    from_logps: Callable[[LiveTokens], Tensor] | None = None
    from_row: Callable[[RowTokens], Sequence[float]] | None = None
    from_batch: StoredScorer | None = None
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.from_row is not None or self.from_batch is not None:
            object.__setattr__(self, "stored", True)
        if self.live and self.stored:
            raise SepoError(
                f"token scorer '{self.name}' is both live (from_logps) and stored, expected one of the two: leave "
                "from_row and stored out, or from_logps."
            )
        if self.compares_with_reference and not self.live:
            raise SepoError(
                f"token scorer '{self.name}' compares with the reference without from_logps, expected a live scorer: "
                "leave compares_with_reference out."
            )

    @property
    def live(self) -> bool:
        """Whether scores are computed from the policy's (and the reference's) log-probabilities of the step."""
        return self.from_logps is not None


def _alignment(tokens: LiveTokens) -> Tensor:
    assert tokens.ref_logps is not None  # compares_with_reference
    return alignment_scores(tokens.policy_logps, tokens.ref_logps, chosen=tokens.chosen)


def _probability(tokens: LiveTokens) -> Tensor:
    return probability_scores(tokens.policy_logps)


def _uncertainty(tokens: LiveTokens) -> Tensor:
    return uncertainty_scores(tokens.policy_logps)


_LOG_RATIO = (-math.inf, math.inf)
NO_SCORER = TokenScorer("none")
SCORERS: Mapping[str, TokenScorer] = MappingProxyType(
    {
        scorer.name: scorer
        for scorer in (
            TokenScorer("oracle", stored=True, bounds=_LOG_RATIO),
            TokenScorer(
                "policy_ref", rejected_largest=True, compares_with_reference=True, from_logps=_alignment,
                bounds=_LOG_RATIO,
            ),
            TokenScorer("contrastive", stored=True, bounds=(-0.5, 0.5)),
            TokenScorer("confidence", rejected_largest=True, from_logps=_uncertainty, bounds=(0.0, math.inf)),
            TokenScorer("probability", rejected_largest=True, from_logps=_probability, bounds=(-1.0, 0.0)),
            TokenScorer("file", stored=True),
            TokenScorer("random", stored=True, bounds=(0.0, 1.0)),
            NO_SCORER,
        )
    }
)  # fmt: skip


@dataclass(frozen=True)
class Selector:
    """The number of tokens to select, their unit and scope, and the count rule.

    Attributes:
        chosen_ratio: share of the chosen responses' tokens, in (0, 1].
        rejected_ratio: share of the rejected responses' tokens; equal to ``chosen_ratio`` with scope ``pair``.
        rule: count rule, see ``sepo.selection.select``.
        unit: what is selected as a whole: ``token``, ``span`` or ``step`` (see ``sepo.selection.units``).
        scope: what the ratio refers to: ``response``, ``pair`` or ``dataset`` (see ``sepo.selection.scopes``).
        span_tokens: minimum length of a span.
        count: how many tokens rule ``floor`` keeps: ``ratio``, the share, or ``shorter``, in both responses of a pair
            as many as the shorter one has.

    Raises:
        SepoError: if parts contradict each other.
    """

    chosen_ratio: float
    rejected_ratio: float
    rule: str = "floor"
    unit: str = "token"
    scope: str = "response"
    span_tokens: int = DEFAULT_SPAN_TOKENS
    count: str = "ratio"

    def __post_init__(self) -> None:
        for name, options in (("rule", RULES), ("unit", UNITS), ("scope", SCOPES), ("count", COUNTS)):
            value = getattr(self, name)
            if value not in options:
                raise SepoError(f"select {name} is {value!r}, expected one of {', '.join(options)}.")
        if self.rule != "floor" and not self.plain:
            raise SepoError(
                f"rule '{self.rule}' requires unit 'token' and scope 'response', found unit '{self.unit}' and scope "
                f"'{self.scope}': spans, steps, pairs and data sets are counted by rule 'floor'; leave the rule out."
            )
        if self.count != "ratio" and (self.rule != "floor" or self.scope != "response"):
            raise SepoError(
                f"count '{self.count}' requires rule 'floor' and scope 'response', found rule '{self.rule}' and scope "
                f"'{self.scope}': it is a number of tokens for each response; leave the other out."
            )
        if self.scope == "pair" and self.chosen_ratio != self.rejected_ratio:
            raise SepoError(
                f"scope 'pair' is one budget for both responses, found the ratios {self.chosen_ratio} (chosen) and "
                f"{self.rejected_ratio} (rejected): set one ratio for both (select_ratio in a recipe)."
            )

    @property
    def plain(self) -> bool:
        """Whether single tokens are selected, with one budget per response."""
        return self.unit == "token" and self.scope == "response"

    @property
    def reads_ratios(self) -> bool:
        """Whether the ratios determine how many tokens are selected."""
        return self.rule != "mean" and self.count == "ratio"

    @property
    def keeps_all(self) -> bool:
        """Whether all tokens that may be selected are, whatever their scores."""
        return self.reads_ratios and self.chosen_ratio == self.rejected_ratio == 1.0

    @property
    def may_be_empty(self) -> bool:
        """Whether a response may have no selected token; its pair then has loss 0."""
        return self.rule == "mean"


@dataclass(frozen=True)
class Method:
    """A preference objective: scorer, selector, token weight, reward, penalty, link, regularizers, pair weight.

    ``resolve_method`` builds one from a name; ``dataclasses.replace`` on its parts gives any other composition, for
    example MinorDPO over tokens that an oracle selects::

        replace(resolve_method("minor_dpo"), token_scorer=SCORERS["oracle"], selector=Selector(0.3, 0.3))

    The loss of a pair is ``pair_weight * link(scale * penalty(reward)) + regularizers``. Every part runs over the
    selected tokens; only a regularizer with ``needs_response`` reads others. A sum of objectives has the first one's
    parts and ``added``: its loss is ``factor`` times that of these parts, plus each factor times the loss of its method
    over the same tokens.

    Attributes:
        name: the objective it was resolved from.
        token_weight: weight of each selected token in every sum and mean over the selection; None for 1.
        factor: the factor of this method's own parts in a sum of objectives.
        added: the other objectives of a sum, each with its factor.
        settings: the hyperparameters it was resolved from, as (name, value) pairs. For the record only: the loss
            depends on the parts.

    Raises:
        SepoError: if parts contradict each other.
    """

    name: str
    reward: ResponseReward
    link: Link
    penalty: Penalty = field(default_factory=NoPenalty)
    regularizers: tuple[Regularizer, ...] = ()
    pair_weight: PairWeight | None = None
    token_scorer: TokenScorer = NO_SCORER
    selector: Selector | None = None
    settings: tuple[tuple[str, Value], ...] = ()
    token_weight: TokenWeight | None = None
    factor: float = 1.0
    added: tuple[tuple[float, Method], ...] = ()

    def __post_init__(self) -> None:
        self._check_weight()
        for _, other in self.added:
            if (other.token_scorer, other.selector, other.token_weight) != (
                self.token_scorer, self.selector, self.token_weight,
            ):  # fmt: skip
                raise SepoError(
                    f"objectives {self.name} and {other.name} of a sum select or weigh tokens differently, expected "
                    "one token_scorer, selector and token_weight for all: set them alike."
                )
        if self.selects != (self.selector is not None):
            found = "without a selector" if self.selects else "with a selector"
            raise SepoError(
                f"method '{self.name}' has the token scorer '{self.scorer}' {found}, expected both or neither: "
                "set token_scorer and selector together."
            )
        if self.needs_counts and self.token_scorer.live:
            stored = ", ".join(scorer.name for scorer in SCORERS.values() if scorer.stored)
            raise SepoError(
                f"method '{self.name}' has scope 'dataset' with the live token scorer '{self.scorer}', expected stored "
                f"scores ({stored}): live scores exist for one batch at a time. Use scope response or pair."
            )
        if self.penalty.compares_with_reference and not self.reward.over_reference:
            raise SepoError(
                f"method '{self.name}' applies {type(self.penalty).__name__} to rewards without a reference, "
                "expected log-ratios to a reference: use a reward with over_reference=True (as in dpo)."
            )
        r = self.reward
        if self.link.needs_probabilities and (r.over_reference or not r.average or r.scale != 1.0):
            raise SepoError(
                f"method '{self.name}' applies {type(self.link).__name__} to {r}, expected a plain mean "
                "log-probability: use ResponseReward(over_reference=False, average=True)."
            )

    def _check_weight(self) -> None:
        weight = self.token_weight
        if weight is None:
            return
        kind = weight_record(weight)["name"]
        if weight.reads_scores and not self.selects:
            raise SepoError(
                f"method '{self.name}' weighs tokens by their scores ({kind}) without a token scorer, "
                "expected one: set token_scorer."
            )
        bounds = self.token_scorer.bounds
        if weight.reads_scores and bounds is not None and not weight.takes(bounds):
            raise SepoError(
                f"method '{self.name}' has token_weight {kind}, which needs scores from "
                f"{weight.score_bounds[0]:g} to {weight.score_bounds[1]:g}, found token scorer '{self.scorer}', whose "
                f"scores are from {bounds[0]:g} to {bounds[1]:g}: set token_scorer: file, or a scorer with such scores."
            )
        if self.averages and weight.can_be_negative(bounds):
            raise SepoError(
                f"method '{self.name}' takes a mean over token weights that can be negative ({kind}), "
                "expected a sum: use an objective of summed rewards (dpo), or a token_weight that is at least 0 "
                "(position, length, importance, critical, transport)."
            )

    @property
    def parts(self) -> tuple[Method, ...]:
        """The methods of a sum of objectives; this one alone if it is none."""
        return (self, *(method for _, method in self.added))

    @property
    def factors(self) -> Mapping[str, float]:
        """The factor of each objective of a sum, by name; empty if it is one objective with factor 1."""
        first, *_ = self.name.split(SUM)
        factors = {first: self.factor, **{part.name: factor for factor, part in self.added}}
        return factors if self.added or self.factor != 1.0 else {}

    @property
    def averages(self) -> bool:
        """Whether some part is a mean over the selected tokens."""
        return any(
            part.reward.average
            or any(regularizer.averages for regularizer in part.regularizers)
            or (part.pair_weight is not None and part.pair_weight.averages)
            for part in self.parts
        )

    @property
    def hyperparameters(self) -> Mapping[str, Value]:
        """The settings that this method was resolved from, including defaults."""
        return MappingProxyType(dict(self.settings))

    @property
    def scorer(self) -> str:
        """The token scorer's name."""
        return self.token_scorer.name

    @property
    def selects(self) -> bool:
        """Whether tokens are selected at all."""
        return self.token_scorer != NO_SCORER

    @property
    def needs_scores(self) -> bool:
        """Whether token scores must exist before the forward pass (a score store)."""
        return self.token_scorer.stored

    @property
    def weighs_by_scores(self) -> bool:
        """Whether token scores are read for weights, not only for a selection."""
        return self.token_weight is not None and self.token_weight.reads_scores

    @property
    def weighs_by_states(self) -> bool:
        """Whether the policy's hidden states are read for weights."""
        return self.token_weight is not None and self.token_weight.reads_states

    @property
    def weighs_live(self) -> bool:
        """Whether token weights are available only after the forward pass."""
        return self.token_weight is not None and (self.token_scorer.live or self.weighs_by_states)

    @property
    def needs_steps(self) -> bool:
        """Whether ``select`` needs the number of each token's step."""
        return self.selector is not None and self.selector.unit == "step"

    @property
    def needs_counts(self) -> bool:
        """Whether ``select`` needs each response's share of a data set's budget."""
        return self.selector is not None and self.selector.scope == "dataset"

    @property
    def needs_reference(self) -> bool:
        """Whether reference log-probabilities (or, for KL, the reference model) are needed."""
        return self.over_reference or self.needs_kl or self.token_scorer.compares_with_reference

    @property
    def over_reference(self) -> bool:
        """Whether a reward is a log-ratio to the reference."""
        return any(part.reward.over_reference for part in self.parts)

    @property
    def compares_all_tokens(self) -> bool:
        """Whether the log-ratios of all tokens to a reference are computed: none is selected or weighed."""
        return self.needs_reference and self.selector is None and self.token_weight is None

    @property
    def needs_token_rewards(self) -> bool:
        """Whether T-REG's token rewards are needed."""
        return any(regularizer.needs_token_rewards for part in self.parts for regularizer in part.regularizers)

    @property
    def needs_kl(self) -> bool:
        """Whether the per-token KL(ref || policy) is needed."""
        return any(part.penalty.needs_kl for part in self.parts)

    @property
    def needs_log_sum_p2(self) -> bool:
        """Whether the per-token log sum of squared policy probabilities is needed."""
        return any(part.pair_weight is not None and part.pair_weight.needs_log_sum_p2 for part in self.parts)

    @property
    def needs_response(self) -> bool:
        """Whether some part reads tokens that were not selected, so that ``preference_loss`` needs the masks."""
        return any(regularizer.needs_response for part in self.parts for regularizer in part.regularizers)

    @property
    def needs_all_tokens(self) -> bool:
        """Whether the policy's log-probabilities of all response tokens are needed.

        False if the selection is available before the forward pass and no part reads the other tokens (``sepo``).
        """
        return not self.needs_scores or self.needs_response
