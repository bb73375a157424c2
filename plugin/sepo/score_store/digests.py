"""Digests of large files, computed once per state of a file for all processes and runs of a user.

They are kept in ``<default_store_root()>/.digests``, one JSON file per path. The state of a file is its size, inode and
times of modification and of change; programs that restore times, such as ``rsync``, cannot set the last one. Nothing
depends on the cache: without it, or with a damaged one, a file is read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from sepo.errors import SepoError
from sepo.score_store.disk import file_digest, locked, remove_leftovers, replace_durably
from sepo.score_store.identity import JSON, canonical_json, default_store_root

LARGE = 2**20
"""Bytes from which a digest is kept; a smaller file is read faster than its entry is locked and written."""
SETTLED = 2.0
"""Seconds since the last change of a file before its digest is kept: a later write within the resolution of the file
system's clock (2 s on FAT, milliseconds elsewhere) would leave its times as they are."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


def cached_digest(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal, from the cache if the file has not changed.

    Of several processes that need the digest of one file, one reads it while the others wait.

    Args:
        path: the file.

    Raises:
        OSError: If the file cannot be read.
    """
    path = path.resolve()
    if path.stat().st_size < LARGE:
        return file_digest(path)
    entry = _entry(path)
    if entry is None:
        return file_digest(path)
    known = _read(entry, path)
    if known is not None:
        return known
    with ExitStack() as stack:
        held = _lock(entry.with_suffix(".lock"), stack)
        if held and (known := _read(entry, path)) is not None:
            return known
        before, start = _state(path), time.time()
        digest = file_digest(path)
        if held and _state(path) == before and _settled(path, at=start):
            with suppress(SepoError):
                remove_leftovers(entry)
                replace_durably(path=entry, data=_entry_bytes(path, before, digest))
    return digest


def _entry(path: Path) -> Path | None:
    """Return the path of a file's entry; None if the user has no home directory to keep it in."""
    try:
        return default_store_root() / ".digests" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
    except RuntimeError:
        return None


def _lock(path: Path, stack: ExitStack) -> bool:
    """Wait for a lock, hold it until the stack closes, and return True; False if the file system refuses it."""
    try:
        stack.enter_context(locked(path, wait=True))
    except (SepoError, NotImplementedError):  # the latter if the file system has no locks
        return False
    return True


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def _settled(path: Path, *, at: float) -> bool:
    """Return whether a file's last change was more than ``SETTLED`` seconds before a time, by the system's clock."""
    found = path.stat()
    return max(found.st_mtime, found.st_ctime) < at - SETTLED


def _entry_bytes(path: Path, state: list[int], digest: str) -> bytes:
    """Return the file of an entry; it has a checksum, as a flipped digit would be another digest or state."""
    body: dict[str, JSON] = {"path": os.fsencode(path).hex(), "state": state, "sha256": digest}
    return canonical_json({**body, "checksum": hashlib.sha256(canonical_json(body)).hexdigest()}) + b"\n"


def _read(entry: Path, path: Path) -> str | None:
    """Return the digest of an entry; None if there is none, it is damaged, or the file has changed."""
    try:
        data = entry.read_bytes()
        digest = str(json.loads(data)["sha256"])
        whole = data == _entry_bytes(path, _state(path), digest)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return digest if whole and _DIGEST.fullmatch(digest) else None
