"""User errors in Axolotl: one line in place of the host's traceback."""

from __future__ import annotations

import sys
from types import TracebackType

from sepo.errors import SepoError
from sepo.hosts.errors import print_error

_BEFORE = "_sepo_before"


def print_errors_without_traceback() -> None:
    """Install an exception hook that prints an uncaught ``SepoError`` as one line; other errors keep their traceback.

    Idempotent.
    """
    before = sys.excepthook
    if hasattr(before, _BEFORE):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, SepoError):
            print_error(error)
        else:
            before(kind, error, trace)

    setattr(hook, _BEFORE, before)
    sys.excepthook = hook
