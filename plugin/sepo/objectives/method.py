"""The resolved method: a frozen composition of parts, which determines the inputs that the loss needs."""

from __future__ import annotations

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
from sepo.objectives.weights import PairWeight
from sepo.selection.scopes import DEFAULT_SPAN_TOKENS, SCOPES
from sepo.selection.scorer_inputs import LiveTokens, RowTokens, StoredScorer
from sepo.selection.scores import alignment_scores, uncertainty_scores
from sepo.selection.select import RULES
from sepo.selection.units import UNITS


@dataclass(frozen=True)
class TokenScorer:
    """The source of token scores; also the object of an entry point in the group ``sepo.selectors``.

    A registered scorer has one of the two functions, defined at module level (methods are picklable)::

        rare = TokenScorer("rare", from_logps=surprise, rejected_largest=True)

    Attributes:
        name: ``oracle``, ``contrastive``, ``file``, ``random``, ``policy_ref``, ``confidence``, ``none``, or a
            registered name (replaced by the entry point's name).
        stored: True if the scores exist before the forward pass, so that tokens can be selected first; always True
            with ``from_row``.
        rejected_largest: which scores of a rejected response are selected. False: the lowest, for rewards (SePO section
            3.2). True: the highest, if the scorer itself flips the sign for rejected (Selective-DPO Eq. 6) or scores
            both sides alike (``confidence``). In chosen responses the highest are always selected.
        compares_with_reference: True if ``from_logps`` also reads the reference's log-probabilities.
        from_logps: live scores from the log-probabilities of the step, [B, T] for the given batch.
        from_row: stored scores from the tokens and their texts, one number per response token.
        from_batch: stored scores that are kept in a score store; the object of an entry point in ``sepo.scorers``.

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


def _uncertainty(tokens: LiveTokens) -> Tensor:
    return uncertainty_scores(tokens.policy_logps)


NO_SCORER = TokenScorer("none")
SCORERS: Mapping[str, TokenScorer] = MappingProxyType(
    {
        scorer.name: scorer
        for scorer in (
            TokenScorer("oracle", stored=True),
            TokenScorer("policy_ref", rejected_largest=True, compares_with_reference=True, from_logps=_alignment),
            TokenScorer("contrastive", stored=True),
            TokenScorer("confidence", rejected_largest=True, from_logps=_uncertainty),
            TokenScorer("file", stored=True),
            TokenScorer("random", stored=True),
            NO_SCORER,
        )
    }
)


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

    Raises:
        SepoError: if parts contradict each other.
    """

    chosen_ratio: float
    rejected_ratio: float
    rule: str = "floor"
    unit: str = "token"
    scope: str = "response"
    span_tokens: int = DEFAULT_SPAN_TOKENS

    def __post_init__(self) -> None:
        for name, options in (("rule", RULES), ("unit", UNITS), ("scope", SCOPES)):
            value = getattr(self, name)
            if value not in options:
                raise SepoError(f"select {name} is {value!r}, expected one of {', '.join(options)}.")
        if self.rule != "floor" and not self.plain:
            raise SepoError(
                f"rule '{self.rule}' requires unit 'token' and scope 'response', found unit '{self.unit}' and scope "
                f"'{self.scope}': spans, steps, pairs and data sets are counted by rule 'floor'; leave the rule out."
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


@dataclass(frozen=True)
class Method:
    """A preference objective: token scorer, selector, response reward, penalty, link, regularizers, pair weight.

    ``resolve_method`` builds one from a name; ``dataclasses.replace`` on its parts gives any other composition, for
    example MinorDPO over tokens that an oracle selects::

        replace(resolve_method("minor_dpo"), token_scorer=SCORERS["oracle"], selector=Selector(0.3, 0.3))

    The loss of a pair is ``pair_weight * link(scale * penalty(reward)) + regularizers``. Every part runs over the
    selected tokens; only a regularizer with ``needs_response`` reads others.

    Attributes:
        name: the objective it was resolved from.
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

    def __post_init__(self) -> None:
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
        return self.reward.over_reference or self.needs_kl or self.token_scorer.compares_with_reference

    @property
    def needs_token_rewards(self) -> bool:
        """Whether T-REG's token rewards are needed."""
        return any(regularizer.needs_token_rewards for regularizer in self.regularizers)

    @property
    def needs_kl(self) -> bool:
        """Whether the per-token KL(ref || policy) is needed."""
        return self.penalty.needs_kl

    @property
    def needs_log_sum_p2(self) -> bool:
        """Whether the per-token log sum of squared policy probabilities is needed."""
        return self.pair_weight is not None and self.pair_weight.needs_log_sum_p2

    @property
    def needs_response(self) -> bool:
        """Whether some part reads tokens that were not selected, so that ``preference_loss`` needs the masks."""
        return any(regularizer.needs_response for regularizer in self.regularizers)

    @property
    def needs_all_tokens(self) -> bool:
        """Whether the policy's log-probabilities of all response tokens are needed.

        False if the selection is available before the forward pass and no part reads the other tokens (``sepo``).
        """
        return not self.needs_scores or self.needs_response
