"""How an error of the user's is told in a process of a host's."""

from __future__ import annotations

import os
import sys

from sepo.errors import SepoError


def tell(error: SepoError) -> None:
    """Print an error of the user's as one line, with the rank that met it."""
    rank = os.environ.get("RANK")
    where = f"[rank {rank}] " if rank not in (None, "0") else ""
    print(f"{where}sepo: error: {error}", file=sys.stderr, flush=True)
