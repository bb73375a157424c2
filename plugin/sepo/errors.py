"""Errors for the user: one line with what was found, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SepoError(ValueError):
    """A mistake in a recipe, in data or in an installation: a one-line message, shown without a traceback."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the known name closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
