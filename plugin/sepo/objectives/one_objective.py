"""Resolution of one objective with its hyperparameters to a Method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sepo.errors import SepoError
from sepo.objectives.declarations import ALL_TOKENS, SELECTION, Objective
from sepo.objectives.method import NO_SCORER, Method, Selector, TokenScorer
from sepo.objectives.presets import COMPOSITION, Weighting, chosen_nll, find_scorer, find_weight, treg
from sepo.objectives.settings import Setting, Value, resolve_settings
from sepo.objectives.token_weights import TokenWeight, WeightRule


def resolved_objective(objective: str, preset: Objective, hyperparameters: Mapping[str, object]) -> Method:
    """Resolve an objective with its hyperparameters, see ``resolve_method``.

    Args:
        objective: its name.
        preset: its declaration.
        hyperparameters: the given ones.

    Raises:
        SepoError: see ``resolve_method``.
    """
    extra = dict(hyperparameters)
    scorer = find_scorer(extra.pop("token_scorer", preset.scorer))  # type: ignore[arg-type]  # refused there
    weight = str(extra.pop("token_weight", preset.weight))
    rule = find_weight(weight)

    own, shared, hints = allowed_settings(preset, scorer, weight)
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
    added = treg(float(values.get("treg_alpha", 0.0)), _weighting(values.get("treg_weighting")))
    added += chosen_nll(float(values["pref_ftx"]), over="response")
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


def allowed_settings(
    preset: Objective, scorer: TokenScorer, weight: str
) -> tuple[dict[str, Setting], dict[str, Setting], dict[str, str]]:
    """Return the settings of an objective with a scorer and a weight: its own, the shared ones, hints about others."""
    own = dict(preset.settings)
    shared = dict(COMPOSITION)
    hints: dict[str, str] = {}
    rule = find_weight(weight)
    if weight != preset.weight:
        for name in preset.weight_settings:
            del own[name]
            hints[name] = (
                f"it is a setting of token_weight {preset.weight}, and token_weight is {weight}: leave it out."
            )
    if rule is not None:
        shared |= {weight_hyperparameter(name, weight, preset): setting for name, setting in rule.settings.items()
                   if weight_hyperparameter(name, weight, preset) not in own}  # fmt: skip
    if scorer is NO_SCORER:
        for name in SELECTION:
            own.pop(name, None)
            hints[name] = "no tokens are selected without a token scorer: set token_scorer, or leave this out."
    else:
        defaults = SELECTION
        if rule is not None and rule.reads_scores:
            defaults = {**SELECTION, **ALL_TOKENS}
        shared |= {name: setting for name, setting in defaults.items() if name not in own}
    if "weighting" in own:  # T-REG under the names of its paper
        for name, letter in (("treg_alpha", "alpha"), ("treg_weighting", "weighting")):
            del shared[name]
            hints[name] = f"it already has T-REG's regularizer: set {letter}."
    return own, shared, hints


def weight_hyperparameter(name: str, weight: str, preset: Objective) -> str:
    """Return the hyperparameter's name for a setting of a token weight in an objective."""
    return name if weight == preset.weight and name in preset.weight_settings else f"{weight}_{name}"


def _built_weight(weight: str, rule: WeightRule, preset: Objective, values: Mapping[str, Value]) -> TokenWeight:
    values = {name: values[weight_hyperparameter(name, weight, preset)] for name in rule.settings}
    return rule.built(values, what=f"token weight '{weight}'")


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


def _weighting(value: object) -> Weighting:
    return "static" if value == "static" else "sequence"
