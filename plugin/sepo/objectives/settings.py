"""Hyperparameters: their defaults and ranges, checked once, where a method is resolved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sepo.errors import SepoError, nearest

Value = float | bool | str


@dataclass(frozen=True)
class Number:
    """A finite number with a default and the interval it must lie in; open ends unless said otherwise."""

    default: float
    low: float
    high: float = math.inf
    low_included: bool = False
    high_included: bool = False

    def check(self, value: object) -> float:
        """Return ``value`` as a float; ValueError with the expectation where it is no number or out of range."""
        if isinstance(value, int | float) and not isinstance(value, bool) and self._holds(value):
            return float(value)
        left, right = "[" if self.low_included else "(", "]" if self.high_included else ")"
        raise ValueError(f"a number in {left}{self.low:g}, {self.high:g}{right}")

    def _holds(self, value: float) -> bool:
        # NaN fails every comparison, infinity the open end.
        above = self.low <= value if self.low_included else self.low < value
        below = value <= self.high if self.high_included else value < self.high
        return above and below


@dataclass(frozen=True)
class Whole:
    """A whole number with a default and the least that it may be."""

    default: int
    low: int

    def check(self, value: object) -> int:
        """Return ``value``; ValueError with the expectation where it is no whole number or too small."""
        if not isinstance(value, int) or isinstance(value, bool) or value < self.low:
            raise ValueError(f"a whole number of at least {self.low}")
        return value


@dataclass(frozen=True)
class Flag:
    """True or False."""

    default: bool

    def check(self, value: object) -> bool:
        """Return ``value``; ValueError with the expectation where it is no bool."""
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return value


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    default: str
    options: tuple[str, ...]

    def check(self, value: object) -> str:
        """Return ``value``; ValueError with the options where it is none of them."""
        if not isinstance(value, str) or value not in self.options:
            raise ValueError(f"one of {', '.join(self.options)}")
        return value


Setting = Number | Whole | Flag | Choice


def resolve_settings(
    objective: str, allowed: Mapping[str, Setting], given: Mapping[str, object], *, hints: Mapping[str, str]
) -> dict[str, Value]:
    """Return every allowed setting, the given value checked or the default.

    Args:
        objective: for the errors.
        allowed: the settings that the objective knows.
        given: what the caller wrote.
        hints: what to say about a name that is known elsewhere but not allowed here.

    Raises:
        SepoError: a name that is not allowed, or a value out of range.
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
