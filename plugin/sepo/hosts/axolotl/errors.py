"""Errors of the user's in Axolotl: one line where the host would print a traceback."""

from __future__ import annotations

import sys
from types import TracebackType

from sepo.errors import SepoError
from sepo.hosts.errors import tell

_BEFORE = "_sepo_before"


def tell_without_traceback() -> None:
    """Have the process print a ``SepoError`` that nothing catches as its line; other errors are printed as ever.

    Twice is as good as once.
    """
    before = sys.excepthook
    if hasattr(before, _BEFORE):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, SepoError):
            tell(error)
        else:
            before(kind, error, trace)

    setattr(hook, _BEFORE, before)
    sys.excepthook = hook
