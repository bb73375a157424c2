"""The keys and the stage that a recipe or a command line gives, read without importing torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Arguments = dict[str, Any] | list[str]
"""A recipe as a mapping, or the words of a command line."""


def stage_of(args: Arguments) -> str | None:
    """Return the stage that a recipe (mapping) or a command line (list of words) names, or None."""
    stage = given_keys(args).get("stage")
    return None if stage is None else str(stage)


def given_keys(args: Arguments) -> dict[str, Any]:
    """Return the keys and values that a recipe or a command line sets."""
    return dict(args) if isinstance(args, dict) else dict(_options(args))


def _options(words: Sequence[str]) -> dict[str, str]:
    """Return the options ``--key value`` and ``--key=value`` of a command line, values as strings."""
    options: dict[str, str] = {}
    for position, word in enumerate(words):
        if not word.startswith("--"):
            continue
        name, equals, value = word[2:].partition("=")
        if not equals:
            following = words[position + 1] if position + 1 < len(words) else ""
            value = "true" if not following or following.startswith("--") else following
        options[name.replace("-", "_")] = value
    return options
