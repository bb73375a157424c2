"""Parts of a method in words, from their records as plain JSON values. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def shown(value: Any) -> str:
    """Return a value as in a recipe."""
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def weight_text(record: Mapping[str, Any]) -> str:
    """Return a token weight in words: its name and settings.

    >>> weight_text({"name": "importance", "clip": 1.5, "low": 0.7, "high": 1.3}), weight_text({"name": "critical"})
    ('importance (clip 1.5, low 0.7, high 1.3)', 'critical')
    """
    settings = [f"{name} {shown(value)}" for name, value in record.items() if name != "name"]
    return f"{record.get('name')}" + (f" ({', '.join(settings)})" if settings else "")


def sum_text(factors: Mapping[str, Any]) -> str:
    """Return a sum of objectives in words.

    >>> sum_text({"dpo": 0.8, "orpo": 0.2})
    '0.8 × dpo + 0.2 × orpo'
    """
    return " + ".join(f"{shown(factor)} × {name}" for name, factor in factors.items())
