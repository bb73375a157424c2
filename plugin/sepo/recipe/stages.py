"""Declarations of the stages of this package and of packages that register one, and the keys that they add."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sepo.errors import SepoError, nearest
from sepo.judges import find_judge
from sepo.objectives import (
    NO_SCORER,
    NO_WEIGHT,
    SCORERS,
    WEIGHTS,
    Stage,
    available_objectives,
    available_scorers,
    resolve_method,
)
from sepo.objectives.declarations import SELECTION
from sepo.objectives.presets import BUILT_IN, find_objective, find_scorer, find_weight
from sepo.objectives.resolve import default_parts
from sepo.objectives.settings import Flag, Number, Setting, Value, Whole
from sepo.plugins import Kind, Registered, find, load, names
from sepo.recipe.keys import HOST_KEYS, SEPO_KEYS, as_flag, as_number
from sepo.recipe.objective_sums import objective_names, objective_of, objective_text
from sepo.recipe.stage_names import STAGES, TAKEN, available_stages

_RATIOS = ("chosen_select_ratio", "rejected_select_ratio")


def find_stage(name: str) -> Stage:
    """Return the declaration of a built-in or registered stage.

    Raises:
        SepoError: If there is no such stage, or a registered one cannot be used.
    """
    item = find("stage", name, built_in=TAKEN)
    if item is None:
        if name not in STAGES:
            known = available_stages()
            raise SepoError(f"stage is {name!r}, expected one of {', '.join(known)}.{nearest(name, known)}")
        return Stage(STAGES[name])
    stage = load(item, Stage)
    for what, part, available in (
        ("objective", stage.objective, available_objectives()),
        ("token scorer", stage.token_scorer or NO_SCORER.name, available_scorers()),
    ):
        if part not in available:
            raise SepoError(
                f"{item} names the {what} {part!r}, expected one of {', '.join(available)}: install the package that "
                f"registers it, or change the stage's declaration.{nearest(str(part), available)}"
            )
    host = (name for name, row in HOST_KEYS.items() if row.sets is not None)
    known = (*SEPO_KEYS, *host, *registered_keys({"objective": stage.objective, **stage.keys}))
    for key in stage.keys:
        if key not in known or key in ("objective", "token_scorer"):
            raise SepoError(
                f"{item} sets the key '{key}', expected keys that apply to its objective '{stage.objective}': remove "
                f"it from the stage's declaration.{nearest(key, known)}"
            )
    return stage


def with_stage_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's keys and values with the defaults of its stage: objective, token scorer and keys.

    Keys of the recipe take precedence. If the recipe names another objective than the stage's, the stage adds nothing;
    if it names another token scorer, the stage adds no keys.

    Raises:
        SepoError: See ``find_stage``.
    """
    stage = find_stage(str(given["stage"]))
    set_here = {name: value for name, value in given.items() if value is not None}
    if "objective" in set_here:
        set_here["objective"] = objective_text("objective", set_here["objective"])
        given = {**given, "objective": set_here["objective"]}
    defaults: dict[str, Any] = {"objective": stage.objective}
    if set_here.get("objective", stage.objective) == stage.objective:
        if stage.token_scorer is not None:
            defaults["token_scorer"] = stage.token_scorer
        if set_here.get("token_scorer", stage.token_scorer) == stage.token_scorer:
            defaults |= _each_side(stage.keys)
    if "select_ratio" in set_here:
        defaults = {name: value for name, value in defaults.items() if name not in _RATIOS}
    return {**given, **{name: value for name, value in defaults.items() if name not in set_here}}


def _each_side(keys: Mapping[str, object]) -> dict[str, object]:
    """Split ``select_ratio`` into the keys of both sides, so that a recipe can override one side."""
    both = dict.fromkeys(_RATIOS, keys["select_ratio"]) if "select_ratio" in keys else {}
    return {**both, **{name: value for name, value in keys.items() if name != "select_ratio"}}


def registered_keys(given: Mapping[str, Any], *, taken: tuple[str, ...] = SEPO_KEYS) -> dict[str, tuple[str, Setting]]:
    """Return the recipe keys of the settings of registered objectives and of their or the recipe's registered weight.

    Args:
        given: keys and values with ``objective`` and, if it is not the objective's, ``token_weight``. Built-in ones
            have no keys here; those are in ``recipe/keys.py``.
        taken: keys with another meaning.

    Returns:
        The hyperparameter of ``resolve_method`` and its declaration by key, ``<objective>_<setting>`` or
        ``<weight>_<setting>``. ``beta`` has the key ``pref_beta`` and the settings of the selection have ``select_*``,
        as for every objective.

    Raises:
        SepoError: If a part cannot be used, or one of its keys is taken.
    """
    keys: dict[str, tuple[str, Setting]] = {}
    objective = objective_text("objective", given["objective"])
    parts, token_weight = objective_names(objective), str(given.get("token_weight") or "")
    under_own_names: set[tuple[str, str]] = set()
    weights = [token_weight]
    for name in parts:
        item = find("objective", name, built_in=BUILT_IN)
        if item is not None:
            own = find_objective(name)
            for setting, declared in own.settings.items():
                if setting != "beta" and setting not in SELECTION:
                    _check_key(item, setting, f"{name}_{setting}", taken)
                    hyperparameter = setting if parts == (objective,) else f"{name}.{setting}"
                    keys[f"{name}_{setting}"] = (hyperparameter, declared)
            weights.append(token_weight or own.weight)
            under_own_names |= {(own.weight, setting) for setting in own.weight_settings}
    for weight in dict.fromkeys(weights):
        item = find("token_weight", weight, built_in=(NO_WEIGHT, *WEIGHTS))
        rule = None if item is None else find_weight(weight)
        if item is not None and rule is not None:
            for setting, declared in rule.settings.items():
                if (weight, setting) not in under_own_names:
                    key = f"{weight}_{setting}"
                    _check_key(item, setting, key, taken)
                    keys.setdefault(key, (key, declared))
    return keys


def selection_parts(given: Mapping[str, Any]) -> tuple[str, str]:
    """Return the names of a recipe's token scorer and token weight, from keys with the stage's defaults.

    Raises:
        SepoError: If an objective is unknown, or the objectives of a sum have different ones.
    """
    named = {name: given[name] for name in ("token_scorer", "token_weight") if given.get(name) is not None}
    return default_parts(objective_of(objective_text("objective", given["objective"])), named)


def _check_key(item: Registered, setting: str, key: str, taken: tuple[str, ...]) -> None:
    if key in taken:
        raise SepoError(
            f"{item} has a setting '{setting}', whose key '{key}' already has another meaning in a recipe: rename the "
            "setting or the entry point in that package."
        )


def read_setting(key: str, setting: Setting, value: Any) -> Value:
    """Convert a value from YAML or a command line to the type of a setting.

    Raises:
        SepoError: If it is not of the setting's type, or outside its range.
    """
    if isinstance(setting, Number | Whole):
        value = as_number(key, value, float if isinstance(setting, Number) else int)
    elif isinstance(setting, Flag):
        value = as_flag(key, value)
    else:
        value = str(value)
    try:
        return setting.check(value)
    except ValueError as expectation:
        raise SepoError(f"{key} is {value!r}, expected {expectation}; the default is {setting.default!r}.") from None


def owner_of_key(key: str) -> tuple[str, str] | None:
    """Return kind and name of the registered objective or token weight that a key belongs to by its prefix."""
    kinds: dict[Kind, tuple[str, ...]] = {"objective": BUILT_IN, "token_weight": (NO_WEIGHT, *WEIGHTS)}
    owners = [(kind, name) for kind, built_in in kinds.items() for name in names(kind, built_in=built_in)
              if key.startswith(f"{name}_")]  # fmt: skip
    return max(owners, key=lambda owner: len(owner[1])) if owners else None


def registered_parts(
    *, stage: str, objectives: Sequence[str], token_scorer: str, token_weight: str
) -> Iterator[Registered]:
    """Yield the parts of a run that other packages register."""
    for item in (
        find("stage", stage, built_in=TAKEN),
        *(find("objective", objective, built_in=BUILT_IN) for objective in objectives),
        find("token_scorer", token_scorer, built_in=SCORERS),
        find("token_weight", token_weight, built_in=(NO_WEIGHT, *WEIGHTS)),
    ):
        if item is not None:
            yield item


def check_registered(item: Registered, *, host_keys: tuple[str, ...]) -> None:
    """Load a registered stage, objective, scorer, weight or judge and resolve it with its defaults, as in its use.

    Raises:
        SepoError: If it cannot be used under its name.
    """
    if item.kind == "token_scorer":
        resolve_method("simpo", token_scorer=find_scorer(item.name).name)
    elif item.kind == "objective":
        resolve_method(item.name)
        registered_keys({"objective": item.name}, taken=(*host_keys, *SEPO_KEYS))
    elif item.kind == "token_weight":
        scorer = {"token_scorer": "oracle"} if (rule := find_weight(item.name)) and rule.reads_scores else {}
        resolve_method("dpo", token_weight=item.name, **scorer)
        registered_keys({"objective": "dpo", "token_weight": item.name}, taken=(*host_keys, *SEPO_KEYS))
    elif item.kind == "judge":
        find_judge(item.name)
    else:
        stage = find_stage(item.name)
        scorer = {} if stage.token_scorer is None else {"token_scorer": stage.token_scorer}
        resolve_method(stage.objective, **scorer)
