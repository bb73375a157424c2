"""The selection in a run's settings file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sepo.errors import SepoError
from sepo.objectives import Selector


def recorded_selector(settings: Mapping[str, Any]) -> Selector | None:
    """Return the selector of a run.

    Args:
        settings: ``sepo_settings.json``.

    Returns:
        The selector; None if the run does not select.

    Raises:
        SepoError: the settings do not describe a selection.
    """
    given = settings.get("select")
    if given is None:
        return None
    known = {item.name for item in fields(Selector)}
    if not isinstance(given, Mapping) or not set(given) <= known:
        raise SepoError(f"its 'select' is {str(given)[:120]}, expected an object with {', '.join(sorted(known))}")
    try:
        return Selector(**given)
    except TypeError as error:
        raise SepoError(f"its 'select' is {str(given)[:120]}, expected a selection ({error})") from error


def selected_ratio(settings: Mapping[str, Any], side: str) -> float | None:
    """Return the share of a side's tokens that a run selects.

    Args:
        settings: ``sepo_settings.json``.
        side: ``chosen`` or ``rejected``.

    Returns:
        The share, in (0, 1]; None if the run does not select, selects otherwise than by a share, or its settings do not
        describe a selection.
    """
    try:
        selector = recorded_selector(settings)
    except SepoError:
        return None
    if selector is None or not selector.reads_ratios:
        return None
    value = selector.chosen_ratio if side == "chosen" else selector.rejected_ratio
    sound = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
    return float(value) if sound else None
