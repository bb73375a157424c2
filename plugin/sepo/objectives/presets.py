"""The named objectives: each is a choice of parts and adds no formula."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from sepo.errors import SepoError, nearest
from sepo.objectives.declarations import SELECTION, Objective, share
from sepo.objectives.links import Hinge, Logistic, Odds, Rank, Square
from sepo.objectives.method import NO_SCORER, SCORERS, Method, Selector, TokenScorer
from sepo.objectives.regularizers import ChosenNll, Regularizer, TokenRewardRegularizer
from sepo.objectives.reward_penalties import ChosenShortfall, RejectedClamp, SequentialKl
from sepo.objectives.rewards import ResponseReward
from sepo.objectives.settings import Choice, Flag, Number, Setting, Value, resolve_settings
from sepo.objectives.weights import PolicyLikelihood
from sepo.plugins import STORED_SCORERS, find, load, names
from sepo.selection.scorer_inputs import StoredScorer

Weighting = Literal["sequence", "static"]


def _log_ratio_sum(beta: float) -> ResponseReward:
    return ResponseReward(over_reference=True, average=False, scale=beta)


def _mean_logp(scale: float = 1.0) -> ResponseReward:
    return ResponseReward(over_reference=False, average=True, scale=scale)


def _treg(alpha: float, weighting: Weighting) -> tuple[Regularizer, ...]:
    return (TokenRewardRegularizer(alpha=alpha, weighting=weighting),) if alpha else ()


def _nll(weight: float, over: Literal["selected", "response"] = "selected") -> tuple[Regularizer, ...]:
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
    return Method("rrhf", _mean_logp(), Rank(), regularizers=_nll(sft_weight))


def _orpo(*, beta: float) -> Method:
    return Method("orpo", _mean_logp(), Odds(weight=beta), regularizers=_nll(1.0))


def _dpop(*, beta: float, dpop_lambda: float) -> Method:
    return replace(_dpo(beta=beta), penalty=ChosenShortfall(weight=dpop_lambda))


def _minor_dpo(*, beta: float) -> Method:
    return replace(_dpo(beta=beta), penalty=RejectedClamp())


def _sepo(*, gamma: float) -> Method:
    # SePO Eq. 26 divides by |y| k %; here the divisor is the number of selected tokens (a mean, also when |y| k % is
    # not whole). The paper gives no gamma; 1 is the value in its authors' code.
    return Method("sepo", _mean_logp(gamma), Logistic())


def _dpo_reg(*, beta: float, alpha: float, weighting: Weighting) -> Method:
    return replace(_dpo(beta=beta), regularizers=_treg(alpha, weighting))


def _simpo_reg(*, beta: float, gamma: float, alpha: float, weighting: Weighting) -> Method:
    return replace(_simpo(beta=beta, gamma=gamma), regularizers=_treg(alpha, weighting))


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
}

# Hyperparameters that every objective takes besides its own. They are in ``hyperparameters`` only if they were given.
_COMPOSITION: dict[str, Setting] = {
    "treg_alpha": _non_negative(0.0),
    "treg_weighting": _TREG["weighting"],
    "pref_ftx": _non_negative(0.0),
}


# Setting names that are reserved in every objective, and prefixes of tensor arguments of ``compute_preference_loss``.
_RESERVED = ("objective", "token_scorer", "weighting", *_COMPOSITION)
_TENSORS = ("policy_", "ref_", "chosen_", "rejected_")

BUILT_IN: tuple[str, ...] = tuple(_PRESETS)
"""Names of the built-in objectives."""


def available_objectives() -> tuple[str, ...]:
    """Return the objectives that ``resolve_method`` and ``compute_preference_loss`` take: built-in, then registered."""
    return (*BUILT_IN, *names("objective", built_in=BUILT_IN))


def available_scorers() -> tuple[str, ...]:
    """Return the names that ``token_scorer`` takes: built-in, then registered."""
    return (*SCORERS, *names("token_scorer", built_in=SCORERS))


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
        return TokenScorer(name, from_batch=stored, rejected_largest=stored.rejected_largest)
    scorer = load(item, TokenScorer)
    if scorer.from_logps is None and scorer.from_row is None:
        raise SepoError(f"{item} has no function, expected from_logps (live) or from_row (stored): set one of them.")
    return replace(scorer, name=name)


def resolve_method(objective: str, **hyperparameters: object) -> Method:
    """Resolve an objective's name and hyperparameters to a frozen ``Method``.

    Besides its own hyperparameters (with the defaults of the papers) every objective takes these:

    - ``token_scorer`` (a name from ``available_scorers()``): selects tokens by these scores, with ``chosen_ratio`` and
      ``rejected_ratio`` (default 0.3, or the objective's default), ``rule``, ``unit`` (``token``, ``span`` with
      ``span_tokens``, ``step``) and ``scope`` (``response``, ``pair``, ``dataset``);
    - ``treg_alpha`` > 0 and ``treg_weighting``: adds T-REG's regularizer (``dpo_reg`` and ``simpo_reg`` have their own
      ``alpha`` and ``weighting`` for it);
    - ``pref_ftx`` > 0: adds the mean negative log-likelihood of all chosen tokens.

    Args:
        objective: a name from ``available_objectives()``.
        **hyperparameters: numbers, bools and strings of that objective.

    Returns:
        The method, which can be compared, hashed, copied and pickled.

    Raises:
        SepoError: if an objective or hyperparameter is unknown (the message has the nearest and all names), a value is
            out of range, or parts contradict each other.
    """
    preset = find_objective(objective)
    extra = dict(hyperparameters)
    scorer = find_scorer(extra.pop("token_scorer", preset.scorer))  # type: ignore[arg-type]  # refused there

    own, shared, hints = _allowed(preset, scorer)
    values = resolve_settings(objective, own | shared, extra, hints=hints)
    if "span_tokens" in extra and values["unit"] != "span":
        raise SepoError(
            f"span_tokens of objective '{objective}' is {values['span_tokens']} and unit is '{values['unit']}', "
            "expected unit 'span': set unit to span (select_unit in a recipe), or leave span_tokens out."
        )
    method = preset.build(**{name: values[name] for name in own if name not in SELECTION})
    if not isinstance(method, Method):
        raise SepoError(
            f"build of objective '{objective}' returned {type(method).__name__}, expected a sepo.objectives.Method."
        )
    added = _treg(float(values.get("treg_alpha", 0.0)), _weighting(values.get("treg_weighting")))
    added += _nll(float(values["pref_ftx"]), over="response")
    recorded = {name: value for name, value in values.items() if name in own or name in extra}
    if "token_scorer" in hyperparameters:
        recorded["token_scorer"] = scorer.name
    return replace(
        method,
        name=objective,
        regularizers=method.regularizers + added,
        token_scorer=scorer,
        selector=None if scorer is NO_SCORER else _selector(values),
        settings=tuple(recorded.items()),
    )


def _allowed(preset: Objective, scorer: TokenScorer) -> tuple[dict[str, Setting], dict[str, Setting], dict[str, str]]:
    """Return the settings of an objective with a token scorer: its own, the shared ones, and hints about others."""
    own = dict(preset.settings)
    shared = dict(_COMPOSITION)
    hints: dict[str, str] = {}
    if scorer is NO_SCORER:
        for name in SELECTION:
            own.pop(name, None)
            hints[name] = "no tokens are selected without a token scorer: set token_scorer, or leave this out."
    else:
        shared |= {name: setting for name, setting in SELECTION.items() if name not in own}
    if "weighting" in own:  # T-REG under the names of its paper
        for name, letter in (("treg_alpha", "alpha"), ("treg_weighting", "weighting")):
            del shared[name]
            hints[name] = f"it already has T-REG's regularizer: set {letter}."
    return own, shared, hints


def setting_defaults(objective: str, *, token_scorer: str) -> dict[str, Value]:
    """Return the default of every hyperparameter that an objective takes with a token scorer.

    Raises:
        SepoError: if the objective or the token scorer is unknown.
    """
    own, shared, _ = _allowed(find_objective(objective), find_scorer(token_scorer))
    return {name: setting.default for name, setting in {**own, **shared}.items()}


def _weighting(value: object) -> Weighting:
    return "static" if value == "static" else "sequence"


def _selector(values: Mapping[str, float | bool | str]) -> Selector:
    return Selector(
        chosen_ratio=float(values["chosen_ratio"]),
        rejected_ratio=float(values["rejected_ratio"]),
        rule=str(values["rule"]),
        unit=str(values["unit"]),
        scope=str(values["scope"]),
        span_tokens=int(values["span_tokens"]),
    )
