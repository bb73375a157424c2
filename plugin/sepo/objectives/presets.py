"""The named objectives: each is a choice of parts and adds no formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from sepo.errors import SepoError, nearest
from sepo.objectives.declarations import SELECTION, Objective, share
from sepo.objectives.links import Hinge, Logistic, NoLink, Odds, Rank, Square
from sepo.objectives.method import NO_SCORER, SCORERS, SUM, Method, Selector, TokenScorer
from sepo.objectives.regularizers import ChosenNll, Regularizer, TokenRewardRegularizer
from sepo.objectives.reward_penalties import ChosenShortfall, RejectedClamp, SequentialKl
from sepo.objectives.rewards import ResponseReward
from sepo.objectives.settings import Choice, Flag, Number, Setting, Value, resolve_settings
from sepo.objectives.token_weights import NO_WEIGHT, WEIGHTS, TokenWeight, WeightRule
from sepo.objectives.weights import PolicyLikelihood
from sepo.plugins import STORED_SCORERS, find, load, names
from sepo.selection.scorer_inputs import StoredScorer
from sepo.selection.select import COUNTS, RULES

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


def _sft() -> Method:
    return Method(SFT, _mean_logp(), NoLink(), regularizers=_nll(1.0, over="response"))


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
# With weights that read scores, all tokens count by default.
_ALL_TOKENS: dict[str, Setting] = {"chosen_ratio": share(1.0), "rejected_ratio": share(1.0)}


def _weighed(weight: str, *, scorer: str = "none", beta: float = 0.1) -> Objective:
    """Return the declaration of DPO with a built-in token weight, whose settings it has under their own names."""
    own = dict(WEIGHTS[weight].settings)
    selection = {} if scorer == "none" else _ALL_TOKENS
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

# Hyperparameters that every objective takes besides its own. They are in ``hyperparameters`` only if they were given.
_COMPOSITION: dict[str, Setting] = {
    "treg_alpha": _non_negative(0.0),
    "treg_weighting": _TREG["weighting"],
    "pref_ftx": _non_negative(0.0),
}


# Setting names that are reserved in every objective, and prefixes of tensor arguments of ``compute_preference_loss``.
_RESERVED = ("objective", "token_scorer", "token_weight", "weighting", *_COMPOSITION)
_TENSORS = ("policy_", "ref_", "chosen_", "rejected_")

BUILT_IN: tuple[str, ...] = tuple(_PRESETS)
"""Names of the built-in objectives."""

SFT = "sft"
"""Name of the chosen response's likelihood in a sum of objectives: the mean negative log-likelihood of its tokens."""


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
        return TokenScorer(name, from_batch=stored, rejected_largest=stored.rejected_largest)
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
        return load(item, WeightRule)
    if isinstance(name, str) and name in (NO_WEIGHT, *WEIGHTS):
        return WEIGHTS.get(name)
    available = available_weights()
    raise SepoError(f"token_weight is {name!r}, expected one of {', '.join(available)}.{nearest(str(name), available)}")


def resolve_method(objective: str | Mapping[str, float], **hyperparameters: object) -> Method:
    """Resolve an objective's name and hyperparameters to a frozen ``Method``.

    Besides its own hyperparameters (with the defaults of the papers) every objective takes these:

    - ``token_scorer`` (a name from ``available_scorers()``): selects tokens by these scores, with ``chosen_ratio`` and
      ``rejected_ratio`` (default 0.3, or the objective's default; 1 with a token weight that reads scores), ``rule``,
      ``count``, ``unit`` (``token``, ``span`` with ``span_tokens``, ``step``) and ``scope`` (``response``, ``pair``,
      ``dataset``);
    - ``token_weight`` (a name from ``available_weights()``): weighs the selected tokens, with the weight's settings as
      ``<weight>_<setting>``: ``position_decay``, ``length_alpha``, ``reward_alpha``, ``importance_clip``,
      ``importance_low``, ``importance_high``, ``transport_reg``, ``transport_reg_m`` (an objective that has the
      weight by default has them under their own names: ``decay`` of ``d2po``);
    - ``treg_alpha`` > 0 and ``treg_weighting``: adds T-REG's regularizer (``dpo_reg`` and ``simpo_reg`` have their own
      ``alpha`` and ``weighting`` for it);
    - ``pref_ftx`` > 0: adds the mean negative log-likelihood of all chosen tokens.

    A mapping of names to factors is a sum of objectives over one selection, ``{"dpo": 0.8, "orpo": 0.2}``; ``sft`` in
    it is the mean negative log-likelihood of all chosen tokens. A hyperparameter applies to all objectives that have
    it, ``<objective>.<hyperparameter>`` to one; the rewards are those of the first. The scorer and the selection are
    those of the objectives that select; if they differ, ``token_scorer`` must be given.

    Args:
        objective: a name from ``available_objectives()``, or a mapping of such names to factors above 0.
        **hyperparameters: numbers, bools and strings of that objective.

    Returns:
        The method, which can be compared, hashed, copied and pickled.

    Raises:
        SepoError: if an objective or hyperparameter is unknown (the message has the nearest and all names), a value is
            out of range, or parts contradict each other.
    """
    if isinstance(objective, Mapping):
        return _sum_of_objectives(objective, hyperparameters)
    return _resolved(objective, find_objective(objective), hyperparameters)


def _resolved(objective: str, preset: Objective, hyperparameters: Mapping[str, object]) -> Method:
    extra = dict(hyperparameters)
    scorer = find_scorer(extra.pop("token_scorer", preset.scorer))  # type: ignore[arg-type]  # refused there
    weight = str(extra.pop("token_weight", preset.weight))
    rule = find_weight(weight)

    own, shared, hints = _allowed(preset, scorer, weight)
    values = resolve_settings(objective, own | shared, extra, hints=hints)
    if "span_tokens" in extra and values["unit"] != "span":
        raise SepoError(
            f"span_tokens of objective '{objective}' is {values['span_tokens']} and unit is '{values['unit']}', "
            "expected unit 'span': set unit to span (select_unit in a recipe), or leave span_tokens out."
        )
    method = preset.build(
        **{name: values[name] for name in own if name not in SELECTION and name not in preset.weight_settings}
    )
    if not isinstance(method, Method):
        raise SepoError(
            f"build of objective '{objective}' returned {type(method).__name__}, expected a sepo.objectives.Method."
        )
    added = _treg(float(values.get("treg_alpha", 0.0)), _weighting(values.get("treg_weighting")))
    added += _nll(float(values["pref_ftx"]), over="response")
    recorded = {name: value for name, value in values.items() if name in own or name in extra}
    if "token_scorer" in hyperparameters:
        recorded["token_scorer"] = scorer.name
    if "token_weight" in hyperparameters:
        recorded["token_weight"] = weight
    return replace(
        method,
        name=objective,
        regularizers=method.regularizers + added,
        token_scorer=scorer,
        selector=None if scorer is NO_SCORER else _selector(objective, values, given=extra),
        token_weight=None if rule is None else _built_weight(weight, rule, preset, values),
        settings=tuple(recorded.items()),
    )


def _sum_of_objectives(factors: Mapping[str, float], hyperparameters: Mapping[str, object]) -> Method:
    """Resolve a sum of objectives: each with the hyperparameters that it has, and with one selection."""
    for name, factor in factors.items():
        try:
            Number(1.0, low=0.0).check(factor)
        except ValueError as expectation:
            raise SepoError(f"the factor of objective {name} is {factor!r}, expected {expectation}.") from None
    preferences = [name for name in factors if name != SFT]
    if not preferences:
        found = ", ".join(factors) or "nothing"
        raise SepoError(
            f"a sum of objectives has {found}, expected at least one objective besides {SFT}: add dpo: 1.0."
        )
    for name in _COMPOSITION:
        if hyperparameters.get(name):
            raise SepoError(
                f"{name} is set with a sum of objectives, which has its own terms: add {SFT} (for pref_ftx), dpo_reg "
                "or simpo_reg (for T-REG's regularizer) to the sum."
            )
    presets = {name: find_objective(name) for name in preferences}
    given = {name: value for name, value in hyperparameters.items() if name not in ("token_scorer", "token_weight")}
    unread = set(given)

    def resolved(name: str, *, scorer: str = NO_SCORER.name, weight: str = NO_WEIGHT) -> Method:
        own, shared, _ = _allowed(presets[name], find_scorer(scorer), weight)
        taken = {}
        for key, value in sorted(given.items(), key=lambda item: "." in item[0]):  # the one of an objective comes last
            owner, dot, setting = key.rpartition(".")
            if (not dot or owner == name) and (setting in own or setting in shared):
                taken[setting] = value
                unread.discard(key)
        return _resolved(name, presets[name], {**taken, "token_scorer": scorer, "token_weight": weight})

    scorer, weight = default_parts(factors, hyperparameters)
    # The selection is that of the first objective that selects, the weight that of the first one that weighs.
    selecting = resolved(_first(presets, lambda preset: preset.scorer == scorer), scorer=scorer)
    weighing = _first(presets, lambda preset: preset.weight == weight)
    token_weight = None if weight == NO_WEIGHT else resolved(weighing, scorer=scorer, weight=weight).token_weight
    own = {name: resolved(name) for name in preferences}
    if unread:
        name = sorted(unread)[0]
        raise SepoError(f"no objective of {SUM.join(factors)} has the hyperparameter '{name}'; leave it out.")
    alike: dict[str, Any] = {
        "token_scorer": selecting.token_scorer,
        "selector": selecting.selector,
        "token_weight": token_weight,
    }
    chosen_ones = [(key, value) for key, value in selecting.settings if key in SELECTION or key == "token_scorer"]
    settings = [(f"{name}.{key}", value) for name, method in own.items() for key, value in method.settings
                if not key.startswith("token_")]  # fmt: skip
    added = {name: replace(own[name] if name in own else _sft(), **alike) for name in factors if name != preferences[0]}
    return replace(
        own[preferences[0]],
        name=SUM.join([preferences[0], *added]),
        factor=float(factors[preferences[0]]),
        added=tuple((float(factors[name]), method) for name, method in added.items()),
        settings=(*settings, *chosen_ones),
        **alike,
    )


def default_parts(objective: str | Mapping[str, float], given: Mapping[str, object]) -> tuple[str, str]:
    """Return the names of the token scorer and the token weight of an objective or a sum of objectives.

    Args:
        objective: as in ``resolve_method``.
        given: ``token_scorer`` and ``token_weight``, which take precedence over those of the objective.

    Raises:
        SepoError: if an objective is unknown, or the objectives of a sum have different ones.
    """
    if isinstance(objective, str):
        preset = find_objective(objective)
        return str(given.get("token_scorer", preset.scorer)), str(given.get("token_weight", preset.weight))
    presets = {name: find_objective(name) for name in objective if name != SFT}
    scorers = {name: preset.scorer for name, preset in presets.items() if preset.scorer != NO_SCORER.name}
    weights = {name: preset.weight for name, preset in presets.items()}
    return (
        _agreed("token_scorer", scorers, given, default=NO_SCORER.name),
        _agreed("token_weight", weights, given, default=NO_WEIGHT),
    )


def _first(presets: Mapping[str, Objective], holds: Callable[[Objective], bool]) -> str:
    """Return the first objective for which something holds, or the first one."""
    return next((name for name, preset in presets.items() if holds(preset)), next(iter(presets)))


def _agreed(key: str, defaults: Mapping[str, str], given: Mapping[str, object], *, default: str) -> str:
    """Return the token scorer or token weight of a sum: the given one, or that of its objectives.

    Raises:
        SepoError: if objectives have different ones.
    """
    if key in given:
        return str(given[key])
    if len(set(defaults.values())) > 1:
        words = ", ".join(f"{value} ({name})" for name, value in defaults.items())
        raise SepoError(
            f"the objectives of a sum have different defaults of {key}: {words}; set {key} for all of them."
        )
    return next(iter(defaults.values()), default)


def _allowed(
    preset: Objective, scorer: TokenScorer, weight: str
) -> tuple[dict[str, Setting], dict[str, Setting], dict[str, str]]:
    """Return the settings of an objective with a scorer and a weight: its own, the shared ones, hints about others."""
    own = dict(preset.settings)
    shared = dict(_COMPOSITION)
    hints: dict[str, str] = {}
    rule = find_weight(weight)
    if weight != preset.weight:
        for name in preset.weight_settings:
            del own[name]
            hints[name] = (
                f"it is a setting of token_weight {preset.weight}, and token_weight is {weight}: leave it out."
            )
    if rule is not None:
        shared |= {_weight_setting(name, weight, preset): setting for name, setting in rule.settings.items()
                   if _weight_setting(name, weight, preset) not in own}  # fmt: skip
    if scorer is NO_SCORER:
        for name in SELECTION:
            own.pop(name, None)
            hints[name] = "no tokens are selected without a token scorer: set token_scorer, or leave this out."
    else:
        defaults = SELECTION
        if rule is not None and rule.reads_scores:
            defaults = {**SELECTION, **_ALL_TOKENS}
        shared |= {name: setting for name, setting in defaults.items() if name not in own}
    if "weighting" in own:  # T-REG under the names of its paper
        for name, letter in (("treg_alpha", "alpha"), ("treg_weighting", "weighting")):
            del shared[name]
            hints[name] = f"it already has T-REG's regularizer: set {letter}."
    return own, shared, hints


def setting_defaults(objective: str | Mapping[str, float], *, token_scorer: str, token_weight: str) -> dict[str, Value]:
    """Return the default of every hyperparameter that an objective takes with a token scorer and a token weight.

    Those of the objectives of a sum are ``<objective>.<hyperparameter>``, except for the selection's.

    Raises:
        SepoError: if the objective, the token scorer or the token weight is unknown.
    """
    if isinstance(objective, str):
        own, shared, _ = _allowed(find_objective(objective), find_scorer(token_scorer), token_weight)
        return {name: setting.default for name, setting in {**own, **shared}.items()}
    presets = {name: find_objective(name) for name in objective if name != SFT}
    selecting = _first(presets, lambda preset: preset.scorer == token_scorer)
    weighing = _first(presets, lambda preset: preset.weight == token_weight)
    defaults = {
        **setting_defaults(weighing, token_scorer=token_scorer, token_weight=token_weight),
        **setting_defaults(selecting, token_scorer=token_scorer, token_weight=NO_WEIGHT),
    }
    for name in presets:
        own, _, _ = _allowed(presets[name], NO_SCORER, token_weight)
        defaults |= {f"{name}.{setting}": declared.default for setting, declared in own.items()}
    return defaults


def weight_setting(objective: str | Mapping[str, float], weight: str, setting: str) -> str:
    """Return the hyperparameter of an objective, or of a sum, for a setting of its token weight."""
    if not isinstance(objective, str):
        presets = {name: find_objective(name) for name in objective if name != SFT}
        objective = _first(presets, lambda preset: preset.weight == weight)
    return _weight_setting(setting, weight, find_objective(objective))


def _weighting(value: object) -> Weighting:
    return "static" if value == "static" else "sequence"


def _weight_setting(name: str, weight: str, preset: Objective) -> str:
    """Return the hyperparameter's name for a setting of a token weight in an objective."""
    return name if weight == preset.weight and name in preset.weight_settings else f"{weight}_{name}"


def _built_weight(weight: str, rule: WeightRule, preset: Objective, values: Mapping[str, Value]) -> TokenWeight:
    built = rule.build(**{name: values[_weight_setting(name, weight, preset)] for name in rule.settings})
    if not isinstance(built, TokenWeight):
        raise SepoError(
            f"build of token weight '{weight}' returned {type(built).__name__}, expected a sepo.objectives.TokenWeight."
        )
    return built


def _selector(objective: str, values: Mapping[str, Value], *, given: Mapping[str, object]) -> Selector:
    selector = Selector(
        chosen_ratio=float(values["chosen_ratio"]),
        rejected_ratio=float(values["rejected_ratio"]),
        rule=str(values["rule"]),
        unit=str(values["unit"]),
        scope=str(values["scope"]),
        span_tokens=int(values["span_tokens"]),
        count=str(values["count"]),
    )
    for name in ("chosen_ratio", "rejected_ratio"):
        if name in given and not selector.reads_ratios:
            by = "rule mean" if selector.rule == "mean" else "count shorter"
            raise SepoError(
                f"{name} of objective '{objective}' is {given[name]}, but {by} sets the number of selected tokens; "
                "leave it out, or set rule: floor and count: ratio (select_rule and select_count in a recipe)."
            )
    return selector
