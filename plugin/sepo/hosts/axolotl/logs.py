"""Our log lines in an Axolotl run: where its own go, in its form."""

from __future__ import annotations

import logging
from typing import Any

from axolotl.logging_config import AxolotlOrWarnErrorFilter

_HOSTS = "_sepo_host_function"


def log_as_the_host(*, first_process: bool) -> None:
    """Send our log lines to Axolotl's handlers, from the first process only; errors from all.

    Axolotl lets what is below a warning pass only where it is its own: by a filter on its handlers, and on every logger
    that is made after its own. The filter passes ours too from now on.

    Args:
        first_process: whether this is the run's first process.
    """
    kind: Any = AxolotlOrWarnErrorFilter
    host = getattr(kind.filter, _HOSTS, kind.filter)

    def passes(self: Any, record: logging.LogRecord) -> bool:
        ours = record.name.partition(".")[0] == "sepo" and record.levelno >= self.axolotl_level
        return ours or bool(host(self, record))

    setattr(passes, _HOSTS, host)
    kind.filter = passes
    theirs, ours = logging.getLogger("axolotl"), logging.getLogger("sepo")
    for handler in theirs.handlers:
        ours.addHandler(handler)
    ours.propagate = not theirs.handlers
    ours.setLevel(logging.INFO if first_process else logging.ERROR)
