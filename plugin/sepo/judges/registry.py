"""Judges by name: built in, or registered by other packages."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from sepo.errors import SepoError, nearest
from sepo.judges.judge import Judge
from sepo.judges.mathematics import math
from sepo.judges.texts import contains, exact, regex
from sepo.plugins import find, load, names

_BUILT_IN: Mapping[str, Callable[..., Judge]] = {"exact": exact, "contains": contains, "regex": regex, "math": math}
REWARD_MODEL, POLICY = "reward_model", "policy"
"""Values of the key ``judge`` that are models, which give a reward and no verdict; no package may register them."""
_RESERVED = (*_BUILT_IN, REWARD_MODEL, POLICY)
_WORDS = {"true": True, "false": False}


def available_judges() -> tuple[str, ...]:
    """Return the names that ``find_judge`` takes: built-in, then registered."""
    return (*_BUILT_IN, *names("judge", built_in=_RESERVED))


def find_judge(name: str, **options: object) -> Judge:
    """Return the judge with a name.

    Args:
        name: a name of ``available_judges()``.
        **options: options of a built-in judge, as values or as the words of a command line (``"true"``); registered
            judges have none.

    Raises:
        SepoError: the name or an option is unknown, a value is invalid, a package that the judge needs is not
            installed, or a registered judge cannot be loaded.
    """
    item = find("judge", name, built_in=_RESERVED)
    if item is not None:
        if options:
            raise SepoError(
                f"judge '{name}' is registered by {item.package} and has no options, found {_list(options)}."
            )
        found = load(item, object)
        if not callable(found):
            raise SepoError(
                f"{item} is of type {type(found).__name__}, expected a sepo.judges.Judge, or a function that takes the "
                "response and the expected answer: point the entry point to one."
            )
        return found if isinstance(found, Judge) else Judge(found)
    if name not in _BUILT_IN:
        known = available_judges()
        raise SepoError(f"unknown judge '{name}'; available: {', '.join(known)}.{nearest(name, known)}")
    build = _BUILT_IN[name]
    defaults = {each.name: each.default for each in inspect.signature(build).parameters.values()}
    return build(**{option: _checked(name, option, value, defaults) for option, value in options.items()})


def _checked(judge: str, option: str, value: object, defaults: Mapping[str, Any]) -> object:
    if option not in defaults:
        raise SepoError(
            f"judge '{judge}' has no option '{option}'; its options: {_list(defaults)}.{nearest(option, defaults)}"
        )
    flag = isinstance(defaults[option], bool)
    found = _WORDS.get(value.lower(), value) if flag and isinstance(value, str) else value
    if not isinstance(found, bool if flag else str):
        expected = "true or false" if flag else "a regular expression"
        raise SepoError(f"{option} of judge '{judge}' is {value!r}, expected {expected}.")
    return found


def _list(options: Mapping[str, object]) -> str:
    return ", ".join(options)
