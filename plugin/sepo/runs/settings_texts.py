"""Objective and token weight of a run's settings file in words. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sepo.recipe.part_texts import sum_text, weight_text


def recorded_factors(settings: Mapping[str, Any]) -> dict[str, float]:
    """Return the factor of each objective of a run's sum, by name; empty if it has none, or they cannot be read."""
    factors = settings.get("factors")
    if not isinstance(factors, Mapping):
        return {}
    return {
        str(name): float(factor)
        for name, factor in factors.items()
        if isinstance(factor, int | float) and not isinstance(factor, bool)
    }


def recorded_objective(settings: Mapping[str, Any]) -> str:
    """Return the objective of a run, or the sum of its objectives with their factors; the empty string if unknown.

    >>> recorded_objective({"objective": "dpo+orpo", "factors": {"dpo": 0.8, "orpo": 0.2}})
    '0.8 × dpo + 0.2 × orpo'
    """
    name = settings.get("objective")
    return sum_text(recorded_factors(settings)) or (name if isinstance(name, str) else "")


def recorded_weight(settings: Mapping[str, Any]) -> str:
    """Return the token weight of a run with its settings; the empty string if it weighs no tokens, or it is unknown."""
    record = settings.get("token_weight")
    return weight_text(record) if isinstance(record, Mapping) else ""
