"""Reporting of user errors from a process of the host."""

from __future__ import annotations

import os
import sys

from sepo.errors import SepoError
from sepo.redaction import without_secrets


def print_error(error: SepoError) -> None:
    """Print a user error to stderr as one line, prefixed with the rank of the process if it is not 0."""
    rank = os.environ.get("RANK")
    where = f"[rank {rank}] " if rank not in (None, "0") else ""
    print(f"{where}sepo: error: {without_secrets(str(error))}", file=sys.stderr, flush=True)
