"""The named objectives: each is a choice of parts and adds no formula."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from sepo.errors import SepoError, nearest
from sepo.objectives.declarations import ALL_TOKENS, SELECTION, Objective, share
from sepo.objectives.links import Hinge, Logistic, NoLink, Odds, Rank, Square
from sepo.objectives.method import SCORERS, Method, TokenScorer
from sepo.objectives.regularizers import ChosenNll, Regularizer, TokenRewardRegularizer
from sepo.objectives.reward_penalties import ChosenShortfall, RejectedClamp, SequentialKl
from sepo.objectives.rewards import ResponseReward
from sepo.objectives.settings import Choice, Flag, Number, Setting
from sepo.objectives.token_weights import NO_WEIGHT, WEIGHTS, WeightRule
from sepo.objectives.weights import PolicyLikelihood
from sepo.plugins import STORED_SCORERS, find, load, names
from sepo.selection.scorer_inputs import StoredScorer
from sepo.selection.select import COUNTS, RULES

Weighting = Literal["sequence", "static"]


def _log_ratio_sum(beta: float) -> ResponseReward:
    return ResponseReward(over_reference=True, average=False, scale=beta)


def _mean_logp(scale: float = 1.0) -> ResponseReward:
    return ResponseReward(over_reference=False, average=True, scale=scale)


def treg(alpha: float, weighting: Weighting) -> tuple[Regularizer, ...]:
    """Return T-REG's regularizer, or nothing for an alpha of 0."""
    return (TokenRewardRegularizer(alpha=alpha, weighting=weighting),) if alpha else ()


def chosen_nll(weight: float, over: Literal["selected", "response"] = "selected") -> tuple[Regularizer, ...]:
    """Return the likelihood of the chosen response as a regularizer, or nothing for a weight of 0."""
    return (ChosenNll(weight=weight, over=over),) if weight else ()


def _dpo(*, beta: float, label_smoothing: float = 0.0) -> Method:
    return Method("dpo", _log_ratio_sum(beta), Logistic(label_smoothing=label_smoothing))


def _robust_dpo(*, beta: float, label_smoothing: float) -> Method:
    return replace(_dpo(beta=beta), link=Logistic(label_smoothing=label_smoothing, robust=True))


def _ipo(*, beta: float, average: bool) -> Method:
    return Method("ipo", ResponseReward(over_reference=True, average=average), Square(target=1 / (2 * beta)))


def _hinge(*, beta: float) -> Method:
    return replace(_dpo(beta=beta), link=Hinge())


def _simpo(*, beta: float, gamma: float) -> Method:
    return Method("simpo", _mean_logp(beta), Logistic(margin=gamma))


def _rrhf(*, sft_weight: float) -> Method:
    return Method("rrhf", _mean_logp(), Rank(), regularizers=chosen_nll(sft_weight))


def _orpo(*, beta: float) -> Method:
    return Method("orpo", _mean_logp(), Odds(weight=beta), regularizers=chosen_nll(1.0))


def _dpop(*, beta: float, dpop_lambda: float) -> Method:
    return replace(_dpo(beta=beta), penalty=ChosenShortfall(weight=dpop_lambda))


def _minor_dpo(*, beta: float) -> Method:
    return replace(_dpo(beta=beta), penalty=RejectedClamp())


def _sepo(*, gamma: float) -> Method:
    # SePO Eq. 26 divides by |y| k %; here the divisor is the number of selected tokens (a mean, also when |y| k % is
    # not whole). The paper gives no gamma; 1 is the value in its authors' code.
    return Method("sepo", _mean_logp(gamma), Logistic())


def _dpo_reg(*, beta: float, alpha: float, weighting: Weighting) -> Method:
    return replace(_dpo(beta=beta), regularizers=treg(alpha, weighting))


def _simpo_reg(*, beta: float, gamma: float, alpha: float, weighting: Weighting) -> Method:
    return replace(_simpo(beta=beta, gamma=gamma), regularizers=treg(alpha, weighting))


def _tdpo1(*, beta: float) -> Method:
    return replace(_dpo(beta=beta), penalty=SequentialKl(weight=1.0, detach_chosen=False))


def _tdpo2(*, beta: float, alpha: float) -> Method:
    return replace(_dpo(beta=beta), penalty=SequentialKl(weight=alpha, detach_chosen=True))


def _wpo(*, beta: float) -> Method:
    return replace(_dpo(beta=beta), pair_weight=PolicyLikelihood())


def _positive(default: float) -> Number:
    return Number(default, low=0.0)


def _non_negative(default: float) -> Number:
    return Number(default, low=0.0, low_included=True)


_BETA = {"beta": _positive(0.1)}
_SMOOTHED = Number(
    0.0, low=0.0, high=0.5, low_included=True
)  # at 0.5 the labels carry no information (and robust_dpo divides by 0)
_SIMPO = {"beta": _positive(2.0), "gamma": _non_negative(1.0)}
# 0.25: the middle of the values that T-REG searched, 0.1, 0.25 and 0.5 (section 4.1)
_TREG: dict[str, Setting] = {
    "alpha": _non_negative(0.25),
    "weighting": Choice("sequence", ("sequence", "static")),
}


def _weighed(weight: str, *, scorer: str = "none", beta: float = 0.1) -> Objective:
    """Return the declaration of DPO with a built-in token weight, whose settings it has under their own names."""
    own = dict(WEIGHTS[weight].settings)
    selection = {} if scorer == "none" else ALL_TOKENS
    settings = {"beta": _positive(beta), **own, **selection}
    return Objective(_dpo, settings, scorer=scorer, weight=weight, weight_settings=tuple(own))


_PRESETS: dict[str, Objective] = {
    "dpo": Objective(_dpo, {**_BETA, "label_smoothing": _SMOOTHED}),
    "robust_dpo": Objective(_robust_dpo, {**_BETA, "label_smoothing": replace(_SMOOTHED, default=0.1)}),
    "ipo": Objective(_ipo, {**_BETA, "average": Flag(True)}),
    "hinge": Objective(_hinge, _BETA),
    "simpo": Objective(_simpo, _SIMPO),
    "rrhf": Objective(_rrhf, {"sft_weight": _non_negative(1.0)}),
    "orpo": Objective(_orpo, _BETA),
    "dpop": Objective(_dpop, {**_BETA, "dpop_lambda": _non_negative(50.0)}),
    "minor_dpo": Objective(_minor_dpo, _BETA),
    "sepo": Objective(
        _sepo,
        {"gamma": _positive(1.0), "chosen_ratio": share(0.3), "rejected_ratio": share(0.3)},
        scorer="oracle",
    ),
    "selective_dpo": Objective(
        _dpo,
        {
            "beta": _positive(0.01),
            "chosen_ratio": share(0.4),
            "rejected_ratio": share(0.4),
            "rule": SELECTION["rule"],
        },
        scorer="policy_ref",
    ),
    "dpo_reg": Objective(_dpo_reg, {**_BETA, **_TREG}),
    "simpo_reg": Objective(_simpo_reg, {**_SIMPO, **_TREG}),
    "tdpo1": Objective(_tdpo1, _BETA),
    "tdpo2": Objective(_tdpo2, {**_BETA, "alpha": _non_negative(0.5)}),
    "wpo": Objective(_wpo, _BETA),
    "confpo": Objective(
        _simpo,
        {"beta": _positive(1.5), "gamma": _non_negative(1.6), "rule": Choice("mean", RULES)},
        scorer="probability",
    ),
    "tgdpo": _weighed("reward", scorer="oracle"),
    "d2po": _weighed("position"),
    "ld_dpo": _weighed("length"),
    "sampo": Objective(_dpo, {**_BETA, "count": Choice("shorter", COUNTS)}, scorer="random"),
    "tis_dpo": _weighed("importance", scorer="oracle"),
    "critical_dpo": _weighed("critical", scorer="file"),
    "otpo": _weighed("transport", beta=0.01),
}

COMPOSITION: dict[str, Setting] = {
    "treg_alpha": _non_negative(0.0),
    "treg_weighting": _TREG["weighting"],
    "pref_ftx": _non_negative(0.0),
}
"""Hyperparameters that every objective takes besides its own. They are recorded only if they were given."""


# Setting names that are reserved in every objective, and prefixes of tensor arguments of ``compute_preference_loss``.
_RESERVED = ("objective", "token_scorer", "token_weight", "weighting", *COMPOSITION)
_TENSORS = ("policy_", "ref_", "chosen_", "rejected_")

BUILT_IN: tuple[str, ...] = tuple(_PRESETS)
"""Names of the built-in objectives."""

SFT = "sft"
"""Name of the chosen response's likelihood in a sum of objectives: the mean negative log-likelihood of its tokens."""

SFT_METHOD = Method(
    SFT, ResponseReward(over_reference=False, average=False), NoLink(), regularizers=chosen_nll(1.0, over="response")
)


def available_objectives() -> tuple[str, ...]:
    """Return the objectives that ``resolve_method`` and ``compute_preference_loss`` take: built-in, then registered."""
    return (*BUILT_IN, *names("objective", built_in=BUILT_IN))


def available_scorers() -> tuple[str, ...]:
    """Return the names that ``token_scorer`` takes: built-in, then registered."""
    return (*SCORERS, *names("token_scorer", built_in=SCORERS))


def available_weights() -> tuple[str, ...]:
    """Return the names that ``token_weight`` takes: none, built-in, then registered."""
    return (NO_WEIGHT, *WEIGHTS, *names("token_weight", built_in=(NO_WEIGHT, *WEIGHTS)))


def find_objective(name: str) -> Objective:
    """Return the objective with the given name, built in or registered by another package.

    Raises:
        SepoError: if the name is unknown (the message has the nearest and all names) or its entry point is unusable.
    """
    item = find("objective", name, built_in=_PRESETS)
    if item is None:
        if name in _PRESETS:
            return _PRESETS[name]
        available = available_objectives()
        raise SepoError(
            f"unknown objective '{name}'; available: {', '.join(available)}.{nearest(str(name), available)}"
        )
    objective = load(item, Objective)
    for setting, declared in objective.settings.items():
        shared = SELECTION.get(setting)
        if setting in _RESERVED or (shared is None and setting.startswith(_TENSORS)):
            raise SepoError(
                f"{item} has a setting '{setting}', which is a reserved name (reserved: {', '.join(_RESERVED)} and "
                f"names that start with {', '.join(_TENSORS)}); rename it."
            )
        if shared is not None and type(declared) is not type(shared):
            raise SepoError(
                f"{item} declares '{setting}' as {declared!r}, expected a {type(shared).__name__}: it is a setting of "
                "the selection, of which an objective can change the default only."
            )
    return objective


def find_scorer(name: str) -> TokenScorer:
    """Return the token scorer with the given name, built in or registered by another package.

    Raises:
        SepoError: if the name is unknown (the message has the nearest and all names) or its entry point is unusable.
    """
    item = find("token_scorer", name, built_in=SCORERS)
    if item is None:
        if isinstance(name, str) and name in SCORERS:
            return SCORERS[name]
        available = available_scorers()
        raise SepoError(
            f"token_scorer is {name!r}, expected one of {', '.join(available)}.{nearest(str(name), available)}"
        )
    if item.group == STORED_SCORERS:
        stored = load(item, StoredScorer)
        return TokenScorer(name, from_batch=stored, rejected_largest=stored.rejected_largest, bounds=stored.bounds)
    scorer = load(item, TokenScorer)
    if scorer.from_logps is None and scorer.from_row is None:
        raise SepoError(f"{item} has no function, expected from_logps (live) or from_row (stored): set one of them.")
    return replace(scorer, name=name)


def find_weight(name: str) -> WeightRule | None:
    """Return the token weight with the given name, built in or registered by another package; None for ``none``.

    Raises:
        SepoError: if the name is unknown (the message has the nearest and all names) or its entry point is unusable.
    """
    item = find("token_weight", name, built_in=(NO_WEIGHT, *WEIGHTS))
    if item is not None:
        rule = load(item, WeightRule)
        rule.built(what=str(item))  # raises
        return rule
    if isinstance(name, str) and name in (NO_WEIGHT, *WEIGHTS):
        return WEIGHTS.get(name)
    available = available_weights()
    raise SepoError(f"token_weight is {name!r}, expected one of {', '.join(available)}.{nearest(str(name), available)}")
