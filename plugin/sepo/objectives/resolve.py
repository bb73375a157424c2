"""Resolution of a name, or of a sum of objectives, with hyperparameters to a Method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sepo.errors import SepoError
from sepo.objectives.declarations import SELECTION, Objective
from sepo.objectives.method import NO_SCORER, SUM, Method
from sepo.objectives.one_objective import allowed_settings, resolved_objective, weight_hyperparameter
from sepo.objectives.presets import COMPOSITION, SFT, SFT_METHOD, find_objective, find_scorer, find_weight
from sepo.objectives.settings import Number, Setting
from sepo.objectives.token_weights import NO_WEIGHT


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
    return resolved_objective(objective, find_objective(objective), hyperparameters)


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


def declared_settings(
    objective: str | Mapping[str, float], *, token_scorer: str, token_weight: str
) -> dict[str, Setting]:
    """Return every hyperparameter that an objective takes with a token scorer and a token weight, with its declaration.

    Those of the objectives of a sum are ``<objective>.<hyperparameter>``, except for the selection's and the weight's.

    Raises:
        SepoError: if the objective, the token scorer or the token weight is unknown.
    """
    if isinstance(objective, str):
        own, shared, _ = allowed_settings(find_objective(objective), find_scorer(token_scorer), token_weight)
        return {**own, **shared}
    presets = {name: find_objective(name) for name in objective if name != SFT}
    selecting = _first(presets, lambda preset: preset.scorer == token_scorer)
    weighing = _first(presets, lambda preset: preset.weight == token_weight)
    declared = {
        **declared_settings(weighing, token_scorer=token_scorer, token_weight=token_weight),
        **declared_settings(selecting, token_scorer=token_scorer, token_weight=token_weight),
    }
    for name in presets:
        own, _, _ = allowed_settings(presets[name], NO_SCORER, token_weight)
        declared |= {f"{name}.{setting}": found for setting, found in own.items()}
    return declared


def weight_setting(objective: str | Mapping[str, float], weight: str, setting: str) -> str:
    """Return the hyperparameter of an objective, or of a sum, for a setting of its token weight."""
    if not isinstance(objective, str):
        presets = {name: find_objective(name) for name in objective if name != SFT}
        objective = _first(presets, lambda preset: preset.weight == weight)
    return weight_hyperparameter(setting, weight, find_objective(objective))


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
    for name in ("treg_alpha", "treg_weighting"):
        if hyperparameters.get(name):
            raise SepoError(
                f"{name} is set with a sum of objectives, which has its own terms: add dpo_reg or simpo_reg "
                "(with T-REG's regularizer) to the sum."
            )
    presets = {name: find_objective(name) for name in preferences}
    factors = _with_likelihood(factors, hyperparameters.get("pref_ftx", 0.0))
    apart = ("token_scorer", "token_weight", *COMPOSITION)
    given = {name: value for name, value in hyperparameters.items() if name not in apart}
    unread = set(given)

    def resolved(name: str, *, scorer: str = NO_SCORER.name, weight: str = NO_WEIGHT) -> Method:
        own, shared, _ = allowed_settings(presets[name], find_scorer(scorer), weight)
        taken = {}
        for key, value in sorted(given.items(), key=lambda item: "." in item[0]):  # the one of an objective comes last
            owner, dot, setting = key.rpartition(".")
            if (not dot or owner == name) and (setting in own or setting in shared):
                taken[setting] = value
                unread.discard(key)
        return resolved_objective(name, presets[name], {**taken, "token_scorer": scorer, "token_weight": weight})

    scorer, weight = default_parts(factors, hyperparameters)
    # The selection is that of the objectives that select, the weight that of the first one that weighs.
    selecting = _one_selection(
        {
            name: resolved(name, scorer=scorer, weight=weight)
            for name in [name for name in presets if presets[name].scorer != NO_SCORER.name] or preferences
        }
    )
    weighing = resolved(_first(presets, lambda preset: preset.weight == weight), scorer=scorer, weight=weight)
    own = {name: resolved(name) for name in preferences}
    if unread:
        name = sorted(unread)[0]
        raise SepoError(f"no objective of {SUM.join(factors)} has the hyperparameter '{name}'; leave it out.")
    alike: dict[str, Any] = {
        "token_scorer": selecting.token_scorer,
        "selector": selecting.selector,
        "token_weight": weighing.token_weight,
    }
    weight_settings = {weight_setting(factors, weight, name) for name in getattr(find_weight(weight), "settings", ())}
    common: list[tuple[str, Any]] = [(key, value) for key, value in selecting.settings if key in SELECTION]
    common += [(key, value) for key, value in weighing.settings if key in weight_settings]
    common += [(key, hyperparameters[key]) for key in ("token_scorer", "token_weight") if key in hyperparameters]
    settings = [(f"{name}.{key}", value) for name, method in own.items() for key, value in method.settings
                if not key.startswith("token_")]  # fmt: skip
    added = {name: replace(own.get(name, SFT_METHOD), **alike) for name in factors if name != preferences[0]}
    return replace(
        own[preferences[0]],
        name=SUM.join([preferences[0], *added]),
        factor=float(factors[preferences[0]]),
        added=tuple((float(factors[name]), method) for name, method in added.items()),
        settings=(*settings, *common),
        **alike,
    )


def _with_likelihood(factors: Mapping[str, float], pref_ftx: object) -> Mapping[str, float]:
    """Return a sum with the likelihood of the chosen response under ``pref_ftx`` in addition to its own."""
    try:
        added = COMPOSITION["pref_ftx"].check(pref_ftx)
    except ValueError as expectation:
        raise SepoError(f"pref_ftx is {pref_ftx!r}, expected {expectation}.") from None
    return {**factors, SFT: factors.get(SFT, 0.0) + float(added)} if added else factors


def _one_selection(methods: Mapping[str, Method]) -> Method:
    """Return the first of the methods of a sum, by name; raise if they select tokens differently."""
    (first, method), *others = methods.items()
    for name, other in others:
        if other.selector != method.selector:
            raise SepoError(
                f"objectives {first} and {name} of a sum have different defaults of the selection ({method.selector}, "
                f"{other.selector}); set the ratios, rule and count for all of them (select_* in a recipe)."
            )
    return method


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
