"""Judges that compare texts: ``exact``, ``contains`` and ``regex``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sepo.errors import SepoError, nearest
from sepo.judges.judge import Judge, accepted, is_absent


@dataclass(frozen=True)
class Pieces:
    """Values that a response has to contain, and values that it must not contain.

    Args:
        any_of: at least one of these; empty for no condition.
        all_of: each of these.
        none_of: none of these.
    """

    any_of: tuple[str, ...] = ()
    all_of: tuple[str, ...] = ()
    none_of: tuple[str, ...] = ()


def exact(*, ignore_case: bool = False, keep_whitespace: bool = False, extract: str = "") -> Judge:
    """Return the judge for which a response is right if it equals one of the accepted values.

    Args:
        ignore_case: whether upper and lower case are equal.
        keep_whitespace: whether white space matters; otherwise each run of it is one space, and none at the ends.
        extract: see ``extraction``.
    """
    shown, answer = _normalization(ignore_case, keep_whitespace), extraction(extract)

    def is_right(response: str, expected: Sequence[str]) -> bool:
        found = answer(response)
        return found is not None and shown(found) in map(shown, expected)

    return Judge(is_right, accepted)


def contains(
    *, ignore_case: bool = False, keep_whitespace: bool = False, whole_words: bool = False, extract: str = ""
) -> Judge:
    """Return the judge for which a response is right if it contains this value and none of those.

    The expected answer is a text (the response contains it), a list (it contains at least one of them), or a mapping
    with ``required`` (it contains every one), ``forbidden`` (it contains none), or both; each a text or a list.

    Args:
        ignore_case: whether upper and lower case are equal.
        keep_whitespace: whether white space matters; otherwise each run of it is one space, and none at the ends.
        whole_words: whether a value has to begin and end at the limits of words, so that 8 is not in 18.
        extract: see ``extraction``.
    """
    shown, answer = _normalization(ignore_case, keep_whitespace), extraction(extract)

    def occurs(value: str, text: str) -> bool:
        value = shown(value)
        return bool(re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text)) if whole_words else value in text

    def is_right(response: str, expected: Pieces) -> bool:
        found = answer(response)
        if found is None:
            return False
        text = shown(found)
        return (
            (not expected.any_of or any(occurs(value, text) for value in expected.any_of))
            and all(occurs(value, text) for value in expected.all_of)
            and not any(occurs(value, text) for value in expected.none_of)
        )

    return Judge(is_right, _pieces)


def regex(*, ignore_case: bool = False, whole_response: bool = False, extract: str = "") -> Judge:
    """Return the judge for which a response is right if a regular expression of Python's ``re`` matches in it.

    The expected answer is a pattern, or a list of which at least one has to match.

    Args:
        ignore_case: whether upper and lower case are equal.
        whole_response: whether a pattern has to match the whole response, without white space at its ends, and not a
            part of it.
        extract: see ``extraction``.
    """
    answer = extraction(extract)

    def read(value: Any) -> tuple[re.Pattern[str], ...]:
        return tuple(compiled(pattern, re.IGNORECASE if ignore_case else 0) for pattern in accepted(value))

    def is_right(response: str, expected: Sequence[re.Pattern[str]]) -> bool:
        found = answer(response)
        if found is None:
            return False
        if whole_response:
            return any(pattern.fullmatch(found.strip()) for pattern in expected)
        return any(pattern.search(found) for pattern in expected)

    return Judge(is_right, read)


def extraction(pattern: str) -> Callable[[str], str | None]:
    """Return the function that extracts the answer from a response, before it is compared.

    >>> extraction("#### (.+)")("2 + 2 is 4\\n#### 4"), extraction("#### (.+)")("4"), extraction("")("4")
    ('4', None, '4')

    Args:
        pattern: a regular expression whose last match in the response is the answer, or its first group if it has
            groups; a response without a match has no answer and is wrong. Empty: the answer is the whole response.

    Raises:
        SepoError: the pattern does not compile.
    """
    if not pattern:
        return lambda response: response
    search = compiled(pattern)

    def answer(response: str) -> str | None:
        matches = list(search.finditer(response))
        return matches[-1][1 if search.groups else 0] if matches else None

    return answer


def compiled(pattern: str, flags: int = 0) -> re.Pattern[str]:
    """Compile a regular expression.

    Raises:
        SepoError: it does not compile.
    """
    try:
        return re.compile(pattern, flags)
    except (re.error, OverflowError, RecursionError) as error:
        raise SepoError(
            f"the regular expression {pattern!r} does not compile ({error}); expected the syntax of Python's re, in "
            "which characters such as ( and + need a backslash to stand for themselves."
        ) from None


def _normalization(ignore_case: bool, keep_whitespace: bool) -> Callable[[str], str]:
    def shown(text: str) -> str:
        text = text if keep_whitespace else " ".join(text.split())
        return text.casefold() if ignore_case else text

    return shown


def _pieces(value: Any) -> Pieces:
    if not isinstance(value, Mapping):
        return Pieces(any_of=accepted(value))
    known = ("required", "forbidden")
    for name in value:
        if name not in known:
            raise SepoError(
                f"the expected answer has the field {name!r}, expected {' or '.join(known)}.{nearest(str(name), known)}"
            )
    required, forbidden = (() if is_absent(value.get(name)) else accepted(value[name]) for name in known)
    if not required and not forbidden:
        raise SepoError(f"the expected answer is {value!r}, expected a value that is required or forbidden.")
    return Pieces(all_of=required, none_of=forbidden)
