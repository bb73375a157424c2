"""Atomic file writes."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, which replaces ``path`` when the block ends.

    The temporary file is in the same directory, with a name that is unique per process and call. If the block fails,
    the temporary file is removed and ``path`` is left unchanged.

    Args:
        path: the file to create or replace.

    Raises:
        OSError: if the file cannot be written or replaced.
    """
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically.

    Args:
        path: the file to create or replace.
        content: text is encoded as UTF-8.

    Raises:
        OSError: if the file cannot be written or replaced.
    """
    with replaced(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
