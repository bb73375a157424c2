"""What a package declares under a name: an objective, or a stage that is an objective with other defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sepo.errors import SepoError
from sepo.objectives.method import Method
from sepo.objectives.settings import Choice, Number, Setting, Whole
from sepo.selection.budgets import DEFAULT_SPAN_TOKENS, SCOPES
from sepo.selection.select import RULES
from sepo.selection.units import UNITS


def share(default: float) -> Number:
    """A share in (0, 1]."""
    return Number(default, low=0.0, high=1.0, high_included=True)


# SePO section 4.1: the top 30 % of both sides.
SELECTION: dict[str, Setting] = {
    "chosen_ratio": share(0.3),
    "rejected_ratio": share(0.3),
    "rule": Choice("floor", RULES),
    "unit": Choice("token", UNITS),
    "scope": Choice("response", SCOPES),
    "span_tokens": Whole(DEFAULT_SPAN_TOKENS, low=1),
}
"""The settings of every selection. An objective that declares one of them gives it another default."""


@dataclass(frozen=True)
class Objective:
    """An objective: its settings with defaults and ranges, its own token scorer, and how its parts are made.

    What an entry point of the group ``sepo.objectives`` names. The entry point's name is the objective's; a recipe sets
    a setting by the key ``<objective>_<setting>``, but ``beta`` by ``pref_beta`` and those of ``SELECTION`` by
    ``select_*``, as for every objective. ``token_scorer``, ``treg_alpha`` and ``pref_ftx`` come for nothing.

    Attributes:
        build: called with all settings by name but those of ``SELECTION``; returns the Method, without selection (its
            name, scorer and selector are filled in).
        settings: by name: ``Number``, ``Whole``, ``Flag`` or ``Choice``.
        scorer: name of the token scorer unless the recipe says otherwise.

    Raises:
        SepoError: a default out of its own range, a name that is none, or settings that ``build`` does not take.
    """

    build: Callable[..., Method]
    settings: Mapping[str, Setting] = field(default_factory=dict)
    scorer: str = "none"

    def __post_init__(self) -> None:
        for name, setting in self.settings.items():
            if not isinstance(setting, Setting) or not name.isidentifier():
                raise SepoError(
                    f"setting {name!r} is {setting!r}, expected a Python name with a Number, Whole, Flag or Choice of "
                    "sepo.objectives."
                )
            try:
                setting.check(setting.default)
            except ValueError as expectation:
                raise SepoError(
                    f"the default of setting '{name}' is {setting.default!r}, expected {expectation}."
                ) from None
        own = [name for name in self.settings if name not in SELECTION]
        try:
            inspect.signature(self.build).bind(**dict.fromkeys(own))
        except TypeError as error:
            raise SepoError(
                f"build does not fit the settings {', '.join(own) or '(none)'} ({error}), expected one parameter for "
                "each: name the parameters as the settings."
            ) from None


@dataclass(frozen=True)
class Stage:
    """A name for ``stage:`` in a recipe: an objective with defaults of the stage's own.

    What an entry point of the group ``sepo.stages`` names. A recipe's own keys win; one that names another objective or
    token scorer than the stage's gets none of ``keys``.

    Attributes:
        objective: built in or registered.
        token_scorer: built in or registered; None for the objective's own.
        keys: recipe keys that set or select something in the objective, with their values.
    """

    objective: str
    token_scorer: str | None = None
    keys: Mapping[str, object] = field(default_factory=dict)
