"""Preference objectives as pure functions: per-token log-probabilities in, per-pair losses out.

``compute_preference_loss`` does it in one call; ``resolve_method``, ``select`` and ``preference_loss`` are its three
steps, for a trainer that selects before it runs the model. A ``Method`` is a composition of the parts below; the names
of ``available_objectives()`` are presets.
"""

from sepo.objectives.compute import compute_preference_loss, preference_loss
from sepo.objectives.links import Hinge, Link, Logistic, Odds, Rank, Square
from sepo.objectives.method import NO_SCORER, SCORERS, Method, Selector, TokenScorer
from sepo.objectives.output import PreferenceOutput
from sepo.objectives.penalties import ChosenShortfall, NoPenalty, Penalty, RejectedClamp, SequentialKl
from sepo.objectives.presets import available_objectives, resolve_method
from sepo.objectives.regularizers import ChosenNll, Regularizer, TokenRewardRegularizer
from sepo.objectives.rewards import ResponseReward
from sepo.objectives.selecting import select
from sepo.objectives.weights import PolicyLikelihood

__all__ = [
    "NO_SCORER",
    "SCORERS",
    "ChosenNll",
    "ChosenShortfall",
    "Hinge",
    "Link",
    "Logistic",
    "Method",
    "NoPenalty",
    "Odds",
    "Penalty",
    "PolicyLikelihood",
    "PreferenceOutput",
    "Rank",
    "Regularizer",
    "RejectedClamp",
    "ResponseReward",
    "Selector",
    "SequentialKl",
    "Square",
    "TokenRewardRegularizer",
    "TokenScorer",
    "available_objectives",
    "compute_preference_loss",
    "preference_loss",
    "resolve_method",
    "select",
]
