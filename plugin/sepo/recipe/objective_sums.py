"""The key ``objective``: the name of an objective, or a sum of objectives with their factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sepo.errors import SepoError
from sepo.objectives.presets import SFT

_EXPECTED = "expected the name of an objective, or a sum such as {dpo: 0.8, orpo: 0.2}"


def objective_text(name: str, value: Any) -> str:
    """Return the one text for a value of the key ``objective``, from YAML or a command line.

    >>> objective_text("objective", {"dpo": 0.8, "orpo": "0.2"}), objective_text("objective", "{dpo: 0.8,orpo: .2}")
    ('dpo: 0.8, orpo: 0.2', 'dpo: 0.8, orpo: 0.2')
    >>> objective_text("objective", '{"dpo":0.8}')  # as LLaMA Board writes it
    'dpo: 0.8'

    Raises:
        SepoError: If it is neither a name nor a mapping of names to numbers.
    """
    if isinstance(value, str) and ":" in value:
        items = [item.partition(":")[::2] for item in value.strip().strip("{}").split(",") if item.strip()]
    elif isinstance(value, Mapping):
        items = [(str(key), factor) for key, factor in value.items()]
    elif isinstance(value, str):
        return value
    else:
        raise SepoError(f"{name} is {value!r}, {_EXPECTED}.")
    named = [(key.strip().strip("'\""), factor) for key, factor in items]
    return ", ".join(f"{key}: {_factor(name, key, factor)!r}" for key, factor in named)


def _factor(name: str, objective: str, factor: Any) -> float:
    try:
        if isinstance(factor, bool):
            raise TypeError
        return float(factor)
    except (TypeError, ValueError):
        raise SepoError(f"the factor of {objective} in {name} is {factor!r}, expected a number.") from None


def objective_of(text: str) -> str | dict[str, float]:
    """Return the name of an objective, or the factors of a sum, from ``objective_text``."""
    if ":" not in text:
        return text
    items = (item.partition(": ") for item in text.split(", "))
    return {name: float(factor) for name, _, factor in items}


def objective_names(text: str) -> tuple[str, ...]:
    """Return the objectives of ``objective_text``, without the likelihood ``sft`` of a sum."""
    objective = objective_of(text)
    return (objective,) if isinstance(objective, str) else tuple(name for name in objective if name != SFT)
