"""Temporary replacement of the forward of a module inside a model."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


class _StandIn:
    """The replacement of a module's forward: one function per module, outside compiled graphs, since a compiled model
    is recompiled if the function changes."""

    def __init__(self) -> None:
        self.forward: Callable[..., Any] | None = None
        self.function: Callable[..., Any] = torch.compiler.disable(self._call)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        assert self.forward is not None  # set for the duration of a call
        return self.forward(*args, **kwargs)


_STAND_INS: weakref.WeakKeyDictionary[nn.Module, _StandIn] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def exchanged(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace a module's forward, and restore it afterwards, including one that was set on the instance.

    Args:
        module: any module. Its hooks are kept.
        forward: a function with the signature of the module's own forward.
    """
    had_own, own = "forward" in module.__dict__, module.__dict__.get("forward")
    stand_in = _STAND_INS.get(module) or _STAND_INS.setdefault(module, _StandIn())
    before, stand_in.forward = stand_in.forward, forward
    module.forward = stand_in.function
    try:
        yield
    finally:
        stand_in.forward = before
        if had_own:
            module.forward = own
        else:
            del module.forward
