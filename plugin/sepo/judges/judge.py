"""The interface of a judge, and the forms of an expected answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sepo.errors import SepoError


def _unchanged(expected: Any) -> Any:
    return expected


@dataclass(frozen=True)
class Judge:
    """A rule that decides whether a response has the expected answer.

    Args:
        is_right: returns True or False, or a number if the judge is for rewards alone, from the text of a response
            (without its end of turn, possibly empty) and the expected answer as ``read`` returns it.
        read: returns the expected answer as ``is_right`` takes it, from the value of a row; raises ``SepoError`` if the
            value is not one. By default the value itself.
    """

    is_right: Callable[[str, Any], float]
    read: Callable[[Any], Any] = _unchanged

    def __call__(self, response: str, expected: Any) -> bool:
        """Return whether a response has the expected answer, given as the value of a row.

        Raises:
            SepoError: the value is not an expected answer of this judge, or the judge failed.
        """
        right = self._returned(response, expected, "True or False")
        if not isinstance(right, bool):
            raise SepoError(f"the judge returned {right!r}, expected True or False.")
        return right

    def reward(self, response: str, expected: Any) -> float:
        """Return the reward of a response: 1 or 0 for True or False, or the number that ``is_right`` returns.

        Raises:
            SepoError: the value is not an expected answer of this judge, or the judge failed.
        """
        found = self._returned(response, expected, "True, False or a number")
        if not isinstance(found, bool | int | float):
            raise SepoError(f"the judge returned {found!r}, expected True, False or a number.")
        return float(found)

    def _returned(self, response: str, expected: Any, results: str) -> Any:
        value = self.read(expected)
        try:
            return self.is_right(response, value)
        except Exception as error:  # a function of another package can raise anything
            reason = (str(error).strip().splitlines() or ["no message"])[0]
            raise SepoError(
                f"the judge failed on the response {response[:60]!r} and the expected answer {expected!r} "
                f"({type(error).__name__}: {reason}); a judge has to return {results} for any response."
            ) from error


def is_absent(value: Any) -> bool:
    """Return whether the value of a row is no expected answer: null, NaN, blank text, or a collection of these.

    >>> is_absent(None), is_absent(" "), is_absent([]), is_absent({"required": None}), is_absent(0)
    (True, True, True, True, False)
    """
    if isinstance(value, Mapping):
        return all(is_absent(each) for each in value.values())
    if isinstance(value, list | tuple):
        return all(is_absent(each) for each in value)
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def accepted(value: Any) -> tuple[str, ...]:
    """Return the accepted values of an expected answer as texts: one value, or any of a list.

    >>> accepted("Paris"), accepted([8, "eight"]), accepted(8.0), accepted(["a", None])
    (('Paris',), ('8', 'eight'), ('8',), ('a',))

    Args:
        value: a text, a number (8.0 is read as 8), or a list of these; null and blank entries of a list are skipped.

    Raises:
        SepoError: it is anything else, or has no value.
    """
    values = value if isinstance(value, list | tuple) else (value,)
    if is_absent(value) or not all(is_absent(each) or _is_value(each) for each in values):
        raise SepoError(f"the expected answer is {value!r}, expected a text, a number, or a list of accepted ones.")
    return tuple(_as_text(each) for each in values if not is_absent(each))


def _is_value(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _as_text(value: str | float) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
