"""The keyword arguments that an attention function reads, and not only accepts.

Layers pass everything on to their attention that the model was called with, so most arguments are read by nobody. A
list of these would have to follow every release of transformers; the functions themselves say what they read.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any


@functools.cache
def read_arguments(function: Callable[..., Any]) -> frozenset[str] | None:
    """Return the names of all keyword arguments that a function may read.

    These are the parameters of its signature. If it has ``**kwargs``, they can be read by name in its body, or passed
    on: the strings that its code uses are then added, and the names that are read by the functions of the same package
    that it refers to.

    >>> def attend(query, *, softcap=None, **kwargs): return kwargs.get("bias")
    >>> sorted(read_arguments(attend))
    ['bias', 'query', 'softcap']

    Args:
        function: an attention function of transformers or of a model.

    Returns:
        The names, possibly more than are read but not less; None if the function is not written in Python.
    """
    start = _python_function(function)
    if start is None:
        return None
    names: set[str] = set()
    package = start.__module__.partition(".")[0]
    seen, pending = {start}, [start]
    while pending:
        current = pending.pop()
        code = current.__code__
        names.update(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
        passes_on = bool(code.co_flags & inspect.CO_VARKEYWORDS)
        if passes_on:
            names.update(_strings(code))
        elif current is start:
            break
        for other in _referred_functions(current):
            # A function without **kwargs can still return one that is called with them.
            near = other.__module__ == current.__module__
            if other not in seen and (near or (passes_on and other.__module__.partition(".")[0] == package)):
                seen.add(other)
                pending.append(other)
    return frozenset(name for name in names if name.isidentifier())


def _python_function(value: object) -> FunctionType | None:
    """Return the function inside decorators, partial applications and methods; None if it is not written in Python."""
    while True:
        if isinstance(value, functools.partial):
            value = value.func
        elif hasattr(value, "__wrapped__"):
            value = value.__wrapped__
        elif inspect.ismethod(value):
            value = value.__func__
        else:
            return value if isinstance(value, FunctionType) else None


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object and those of the functions that are defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _strings(code: CodeType) -> Iterator[str]:
    """Yield the strings of a function's code."""
    for part in _codes(code):
        for constant in part.co_consts:
            values = constant if isinstance(constant, tuple | frozenset) else (constant,)
            yield from (value for value in values if isinstance(value, str))


def _referred_functions(function: FunctionType) -> Iterator[FunctionType]:
    """Yield the functions that a function refers to by a global name or from an enclosing function."""
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_set(cell)]
    names = {name for part in _codes(function.__code__) for name in part.co_names}
    for value in [*cells, *(function.__globals__[name] for name in names if name in function.__globals__)]:
        if (other := _python_function(value)) is not None:
            yield other


def _is_set(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
