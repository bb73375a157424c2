"""Declarations for entry points: objectives, and stages, which are objectives with other defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sepo.objectives.method import Method
from sepo.objectives.settings import Choice, Number, Setting, Whole, check_declared
from sepo.objectives.token_weights import NO_WEIGHT
from sepo.selection.scopes import DEFAULT_SPAN_TOKENS, SCOPES
from sepo.selection.select import COUNTS, RULES
from sepo.selection.units import UNITS


def share(default: float) -> Number:
    """Return the setting of a share in (0, 1]."""
    return Number(default, low=0.0, high=1.0, high_included=True)


# SePO section 4.1: the top 30 % of both sides.
SELECTION: dict[str, Setting] = {
    "chosen_ratio": share(0.3),
    "rejected_ratio": share(0.3),
    "rule": Choice("floor", RULES),
    "unit": Choice("token", UNITS),
    "scope": Choice("response", SCOPES),
    "span_tokens": Whole(DEFAULT_SPAN_TOKENS, low=1),
    "count": Choice("ratio", COUNTS),
}
"""Settings of every selection. An objective may declare one of them to change its default."""

ALL_TOKENS: dict[str, Setting] = {"chosen_ratio": share(1.0), "rejected_ratio": share(1.0)}
"""Ratios of a selection whose tokens are weighed by their scores, unless others are set."""


@dataclass(frozen=True)
class Objective:
    """A preference objective: its settings with defaults and ranges, its default token scorer, and how it is built.

    The object of an entry point in the group ``sepo.objectives``. The entry point's name is the objective's name. In a
    recipe, the key of a setting is ``<objective>_<setting>``, except for ``beta`` (``pref_beta``) and the settings in
    ``SELECTION`` (``select_*``), as for every objective. ``token_scorer``, ``token_weight``, ``treg_alpha`` and
    ``pref_ftx`` are included.

    Attributes:
        build: called with all settings by name except those in ``SELECTION`` and ``weight_settings``; returns the
            Method without a selection (its name, scorer, selector and token weight are filled in).
        settings: ``Number``, ``Whole``, ``Flag`` or ``Choice``, by name.
        scorer: name of the default token scorer, which a recipe can change.
        weight: name of the default token weight, which a recipe can change.
        weight_settings: names in ``settings`` that are settings of this weight; they apply unless it is changed.

    Raises:
        SepoError: if a default is out of its range, a name is not a Python name, or ``build`` does not take the
            settings.
    """

    build: Callable[..., Method]
    settings: Mapping[str, Setting] = field(default_factory=dict)
    scorer: str = "none"
    weight: str = NO_WEIGHT
    weight_settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        own = [name for name in self.settings if name not in (*SELECTION, *self.weight_settings)]
        check_declared(self.build, self.settings, passed=own)


@dataclass(frozen=True)
class Stage:
    """A value for ``stage:`` in a recipe: an objective with other defaults.

    The object of an entry point in the group ``sepo.stages``. Keys in the recipe take precedence; if the recipe sets
    another objective or token scorer than the stage's, none of ``keys`` apply.

    Attributes:
        objective: name of a built-in or registered objective.
        token_scorer: name of a built-in or registered token scorer; None for the objective's default.
        keys: values of recipe keys that configure the objective or its selection.
    """

    objective: str
    token_scorer: str | None = None
    keys: Mapping[str, object] = field(default_factory=dict)
