"""Log records of sepo in an Axolotl run: sent to the host's handlers, in its format."""

from __future__ import annotations

import logging
from typing import Any

from axolotl.logging_config import AxolotlOrWarnErrorFilter

from sepo.redaction import without_secrets

_HOSTS = "_sepo_host_function"


class _HidesSecrets(logging.Filter):
    """Filter that replaces the secrets of the config in the host's log lines: it logs the whole config."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        hidden = without_secrets(text)
        if hidden != text:
            record.msg, record.args = hidden, ()
        return True


def hide_secrets() -> None:
    """Hide the secrets of the config in what the host logs from now on. Idempotent."""
    for handler in logging.getLogger("axolotl").handlers:
        if not any(isinstance(each, _HidesSecrets) for each in handler.filters):
            handler.addFilter(_HidesSecrets())


def log_as_the_host(*, first_process: bool) -> None:
    """Send sepo's log records to Axolotl's handlers, from the first process only; errors from all processes.

    Axolotl drops records below WARNING from other packages, by a filter on its handlers and on every logger created
    after its own. The filter is extended to pass sepo's records.

    Args:
        first_process: whether this is the first process of the run.
    """
    kind: Any = AxolotlOrWarnErrorFilter
    host = getattr(kind.filter, _HOSTS, kind.filter)

    def passes(self: Any, record: logging.LogRecord) -> bool:
        from_sepo = record.name.partition(".")[0] == "sepo" and record.levelno >= self.axolotl_level
        return from_sepo or bool(host(self, record))

    setattr(passes, _HOSTS, host)
    kind.filter = passes
    hosts_logger, logger = logging.getLogger("axolotl"), logging.getLogger("sepo")
    for handler in hosts_logger.handlers:
        logger.addHandler(handler)
    logger.propagate = not hosts_logger.handlers
    logger.setLevel(logging.INFO if first_process else logging.ERROR)
