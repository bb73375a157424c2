"""Hyperparameters with defaults and ranges, checked once, when a method is resolved."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sepo.errors import SepoError, nearest

Value = float | bool | str


@dataclass(frozen=True)
class Number:
    """A finite number with a default and an interval that it must lie in; the ends are open by default."""

    default: float
    low: float
    high: float = math.inf
    low_included: bool = False
    high_included: bool = False

    def check(self, value: object) -> float:
        """Return ``value`` as a float; raise ValueError(expectation) if it is not a number or out of range."""
        if isinstance(value, int | float) and not isinstance(value, bool) and self._holds(value):
            return float(value)
        left, right = "[" if self.low_included else "(", "]" if self.high_included else ")"
        raise ValueError(f"a number in {left}{self.low:g}, {self.high:g}{right}")

    def _holds(self, value: float) -> bool:
        # NaN fails every comparison, infinity fails that with the open end.
        above = self.low <= value if self.low_included else self.low < value
        below = value <= self.high if self.high_included else value < self.high
        return above and below


@dataclass(frozen=True)
class Whole:
    """A whole number with a default and a minimum."""

    default: int
    low: int

    def check(self, value: object) -> int:
        """Return ``value``; raise ValueError(expectation) if it is not a whole number or too small."""
        if not isinstance(value, int) or isinstance(value, bool) or value < self.low:
            raise ValueError(f"a whole number of at least {self.low}")
        return value


@dataclass(frozen=True)
class Flag:
    """True or False."""

    default: bool

    def check(self, value: object) -> bool:
        """Return ``value``; raise ValueError(expectation) if it is not a bool."""
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return value


@dataclass(frozen=True)
class Choice:
    """One of a fixed set of strings."""

    default: str
    options: tuple[str, ...]

    def check(self, value: object) -> str:
        """Return ``value``; raise ValueError(expectation) if it is not one of the options."""
        if not isinstance(value, str) or value not in self.options:
            raise ValueError(f"one of {', '.join(self.options)}")
        return value


Setting = Number | Whole | Flag | Choice


def check_declared(build: Callable[..., object], settings: Mapping[str, Setting], *, passed: Sequence[str]) -> None:
    """Check the settings that an objective or a token weight declares, before it is used.

    Args:
        build: what the settings are passed to, by name.
        settings: the declared settings.
        passed: the names in ``settings`` that ``build`` takes.

    Raises:
        SepoError: if a default is out of its range, a name is not a Python name, or ``build`` does not take the
            settings.
    """
    for name, setting in settings.items():
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
    try:
        inspect.signature(build).bind(**dict.fromkeys(passed))
    except TypeError as error:
        raise SepoError(
            f"build does not take the settings {', '.join(passed) or '(none)'} ({error}), expected one parameter for "
            "each: name the parameters like the settings."
        ) from None


def resolve_settings(
    objective: str, allowed: Mapping[str, Setting], given: Mapping[str, object], *, hints: Mapping[str, str]
) -> dict[str, Value]:
    """Return the value of every allowed setting: the given one, checked, or the default.

    Args:
        objective: name for error messages.
        allowed: the settings that the objective takes.
        given: the caller's values.
        hints: advice for names that exist elsewhere but are not allowed here.

    Raises:
        SepoError: if a name is not allowed or a value is out of range.
    """
    for name in given:
        if name not in allowed:
            advice = hints.get(name) or f"allowed: {', '.join(sorted(allowed))}.{nearest(name, allowed)}"
            raise SepoError(f"objective '{objective}' has no hyperparameter '{name}'; {advice}")
    resolved: dict[str, Value] = {}
    for name, setting in allowed.items():
        try:
            resolved[name] = setting.check(given.get(name, setting.default))
        except ValueError as expectation:
            raise SepoError(
                f"{name} of objective '{objective}' is {given[name]!r}, expected {expectation}; the default is "
                f"{setting.default!r}."
            ) from None
    return resolved
