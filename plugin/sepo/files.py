"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give the block a temporary file to write, which becomes ``path`` when the block ends.

    The temporary file is in the same directory, with a name that is unique per process and call. A failure removes it
    and leaves ``path`` as it was.

    Args:
        path: the file to create or replace.

    Raises:
        OSError: the file system refuses.
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
    """Write a file that appears when all of it is written.

    Args:
        path: the file to create or replace.
        content: text is encoded as UTF-8.

    Raises:
        OSError: the file system refuses.
    """
    with replaced(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
