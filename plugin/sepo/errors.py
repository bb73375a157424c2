"""Errors for the user: one line with what was found, what was expected and what to do."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable


class SepoError(ValueError):
    """A mistake in a recipe, in data or in an installation: a one-line message, shown without a traceback."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the known name closest to ``name``, or an empty string.

    Among equally close names, the one with the longest common beginning wins.
    """
    close = difflib.get_close_matches(name, list(known), n=8, cutoff=0.6)

    def closeness(other: str) -> tuple[float, int]:
        beginning = itertools.takewhile(lambda letters: letters[0] == letters[1], zip(name, other, strict=False))
        return difflib.SequenceMatcher(a=other, b=name).ratio(), len(list(beginning))

    return f" Did you mean '{max(close, key=closeness)}'?" if close else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
