"""The judge ``math``: equality of mathematical expressions, by the package math-verify."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Sequence
from typing import Any

from sepo.errors import SepoError
from sepo.installation import install_command
from sepo.judges.judge import Judge, accepted
from sepo.judges.texts import extraction

_SECONDS = 5


def math(*, extract: str = "") -> Judge:
    """Return the judge for which a response is right if its answer equals one of the accepted values mathematically.

    math-verify (https://github.com/huggingface/Math-Verify) finds the answer in the response (a boxed expression, else
    LaTeX, else a number; the last one) and compares: 0.5 is 1/2 is \\frac{2}{4}. An expression that takes more than 5
    seconds to read or to compare is wrong; the limit needs the main thread of a process, and there is none elsewhere.

    The expected answer is a number or LaTeX, with or without dollar signs.

    Args:
        extract: see ``texts.extraction``; applied before math-verify.

    Raises:
        SepoError: math-verify is not installed, or cannot be imported.
    """
    try:
        library: Any = importlib.import_module("math_verify")
    except Exception as error:  # incompatible versions of its dependencies raise exceptions of any type
        missing = isinstance(error, ModuleNotFoundError) and error.name == "math_verify"
        reason = "is not installed" if missing else f"cannot be imported ({type(error).__name__}: {error})"
        raise SepoError(
            f"judge 'math' needs the package math-verify, which {reason}; run: {install_command('math')}"
        ) from error
    answer = extraction(extract)

    def read(value: Any) -> tuple[list[Any], ...]:
        return tuple(_expression(library, text) for text in accepted(value))

    def is_right(response: str, expected: Sequence[list[Any]]) -> bool:
        found = answer(response)
        if found is None:
            return False
        target = library.parse(found, parsing_timeout=_limit())
        return any(library.verify(value, target, timeout_seconds=_limit()) for value in expected)

    return Judge(is_right, read)


def _expression(library: Any, text: str) -> list[Any]:
    """Read an expected answer; math-verify looks for expressions between dollar signs, as in a response."""
    marked = text if "$" in text or "\\boxed" in text or "\\(" in text or "\\[" in text else f"${text}$"
    found: list[Any] = library.parse(marked, fallback_mode="no_fallback", parsing_timeout=_limit())
    if not found:
        raise SepoError(f"the expected answer {text!r} is not a mathematical expression; expected a number or LaTeX.")
    return found


def _limit() -> int | None:
    """Return the time limit in seconds; it uses a signal, which only the main thread can handle."""
    return _SECONDS if threading.current_thread() is threading.main_thread() else None
