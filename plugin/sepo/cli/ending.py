"""The end of commands that import a host and leave nothing to wait for."""

from __future__ import annotations

import atexit
import os
import sys


def end_process(status: int) -> None:
    """End this process with a status, without tearing down the imported modules, which takes 1.5 s of CPU time.

    Functions that are registered with ``atexit`` run, and output is flushed. Returns if the output cannot be written,
    for the interpreter to report it when it ends.
    """
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return
    os._exit(status)
