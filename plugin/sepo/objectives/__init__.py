"""Preference objectives as pure functions: per-token log-probabilities in, per-pair losses out.

``compute_preference_loss`` computes the loss in one call; ``resolve_method``, ``select``, ``weigh`` and
``preference_loss`` are its steps, for a trainer that selects tokens before it runs the model. A ``Method`` is a
composition of the parts below; the names of ``available_objectives()`` are presets. Other packages register an
``Objective``, ``TokenScorer`` or ``Stage`` under a new name in the entry-point groups ``sepo.objectives``,
``sepo.selectors`` and ``sepo.stages``, a ``StoredScorer``, whose scores are kept in a score store, in ``sepo.scorers``,
and a ``WeightRule`` in ``sepo.weights``.
"""

from sepo.objectives.compute import compute_preference_loss, preference_loss
from sepo.objectives.declarations import Objective, Stage
from sepo.objectives.links import Hinge, Link, Logistic, Odds, Rank, Square
from sepo.objectives.method import NO_SCORER, SCORERS, Method, Selector, TokenScorer
from sepo.objectives.output import PreferenceOutput
from sepo.objectives.presets import available_objectives, available_scorers, available_weights
from sepo.objectives.regularizers import ChosenNll, Regularizer, Term, TokenRewardRegularizer
from sepo.objectives.resolve import resolve_method
from sepo.objectives.reward_penalties import (
    ChosenShortfall,
    NoPenalty,
    PairRewards,
    Penalty,
    RejectedClamp,
    SequentialKl,
)
from sepo.objectives.rewards import ResponseReward
from sepo.objectives.selecting import select
from sepo.objectives.settings import Choice, Flag, Number, Whole
from sepo.objectives.sides import Side
from sepo.objectives.token_weights import (
    NO_WEIGHT,
    WEIGHTS,
    StateWeight,
    TokenWeight,
    Transport,
    WeighedTokens,
    WeightRule,
)
from sepo.objectives.weighing import state_weights, weigh, weigh_states
from sepo.objectives.weights import PairWeight, PolicyLikelihood
from sepo.selection.scorer_inputs import LiveTokens, RowTokens, StoredScorer

__all__ = [
    "NO_SCORER",
    "NO_WEIGHT",
    "SCORERS",
    "WEIGHTS",
    "Choice",
    "ChosenNll",
    "ChosenShortfall",
    "Flag",
    "Hinge",
    "Link",
    "LiveTokens",
    "Logistic",
    "Method",
    "NoPenalty",
    "Number",
    "Objective",
    "Odds",
    "PairRewards",
    "PairWeight",
    "Penalty",
    "PolicyLikelihood",
    "PreferenceOutput",
    "Rank",
    "Regularizer",
    "RejectedClamp",
    "ResponseReward",
    "RowTokens",
    "Selector",
    "SequentialKl",
    "Side",
    "Square",
    "Stage",
    "StateWeight",
    "StoredScorer",
    "Term",
    "TokenRewardRegularizer",
    "TokenScorer",
    "TokenWeight",
    "Transport",
    "WeighedTokens",
    "WeightRule",
    "Whole",
    "available_objectives",
    "available_scorers",
    "available_weights",
    "compute_preference_loss",
    "preference_loss",
    "resolve_method",
    "select",
    "state_weights",
    "weigh",
    "weigh_states",
]
