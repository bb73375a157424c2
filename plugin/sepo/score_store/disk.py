"""Durable atomic file replacement, cleanup after dead writers, locks, checksums."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from sepo.errors import SepoError
from sepo.files import replaced

MANIFEST_LOCK = "manifest.lock"
SCORES = "token_scores_dir"
"""The recipe key that names the directory of score stores."""
_PIECES = {SCORES: "shards"}
_USER = "user-"
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def file_digest(path: Path | str) -> str:
    """Return the sha256 of a file in hexadecimal, read as a stream (memory does not grow with the file).

    Raises:
        OSError: If the file cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_if_there(path: Path) -> bytes | None:
    """Return a file's bytes, or None if there is no such file.

    Raises:
        SepoError: If the file exists and cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SepoError(
            f"cannot read {path}: {error.strerror}; restore access, or set another token_scores_dir"
        ) from error


def make_folder(path: Path, *, key: str = SCORES) -> None:
    """Create a directory and its parents; idempotent.

    Args:
        path: the directory.
        key: the recipe key that moves the files elsewhere, for the error message.

    Raises:
        SepoError: If it is a file, or the file system refuses.
    """
    if path.is_dir():
        return
    if path.exists():
        raise SepoError(f"{path} is a file, expected a directory; set another {key}, or move the file.")
    try:
        path.mkdir(parents=True, exist_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise _write_error(path, size=0, error=error, key=key) from error


@contextmanager
def replaced_durably(path: Path, *, size: int = 0, key: str = SCORES) -> Iterator[Path]:
    """Yield a temporary file for the block to write and sync, then replace ``path`` by it atomically and durably.

    The temporary file is in the same directory (its name is unique per process and call) and is renamed, and the
    directory is synced. On failure it is removed and ``path`` is unchanged.

    Args:
        path: the file to create or replace.
        size: number of bytes to be written, for the error message.
        key: the recipe key that moves the files elsewhere, for the error message.

    Raises:
        SepoError: If the file system refuses; the message gives the path, the bytes needed and the bytes free.
    """
    try:
        with replaced(path) as temporary:
            yield temporary
        _sync_folder(path.parent)
    except OSError as error:
        raise _write_error(path, size=size, error=error, key=key) from error


def replace_durably(*, path: Path, data: bytes | memoryview, key: str = SCORES) -> None:
    """Replace the content of ``path`` by ``data``, durably and atomically: it always is the old or the new content.

    Args:
        path: the file to create or replace.
        data: its content.
        key: the recipe key that moves the files elsewhere, for the error message.

    Raises:
        SepoError: If the file system refuses; the message gives the path, the bytes needed and the bytes free.
    """
    with replaced_durably(path, size=len(data), key=key) as temporary:
        _write_synced(temporary, memoryview(data).cast("B"))


def remove_leftovers(path: Path) -> None:
    """Remove temporary files left by dead writers of ``path``. The caller must hold that file's lock."""
    prefix = f".{path.name}."
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and entry.name.endswith(".tmp"):
                # A file that cannot be removed only costs space: no reader opens it.
                with suppress(OSError):
                    os.unlink(entry.path)


@contextmanager
def locked(path: Path, *, wait: bool, key: str = SCORES) -> Iterator[bool]:
    """Hold the file lock at ``path`` for the block; yield False if another process holds it and ``wait`` is False.

    The kernel releases the lock when its holder dies for any reason. The file itself is kept: removing it would let two
    processes lock two files of the same name.

    Args:
        path: the lock file.
        wait: whether to wait for another holder.
        key: the recipe key that moves the files elsewhere, for the error message.

    Raises:
        SepoError: If the lock file cannot be created or locked.
    """
    make_folder(path.parent, key=key)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=wait)
        held = True
    except Timeout:
        held = False
    except OSError as error:
        raise _write_error(path, size=0, error=error, key=key) from error
    try:
        yield held
    finally:
        if held:
            lock.release()


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Mark the process as a writer of a store for the block, including between shards; see :func:`users_gone`.

    Each writer creates and locks its own file while it holds the manifest's lock, so that no writer can start while a
    store is being removed. Files of dead writers are removed.

    Args:
        folder: directory of the store's locks.

    Raises:
        SepoError: If the lock file cannot be created or locked.
    """
    with ExitStack() as stack:
        with locked(folder / MANIFEST_LOCK, wait=True):
            users_gone(folder)
            path = folder / f"{_USER}{os.getpid()}-{secrets.token_hex(4)}.lock"
            stack.enter_context(locked(path, wait=True))
        stack.callback(path.unlink, missing_ok=True)
        yield


def users_gone(folder: Path) -> bool:
    """Return whether no live process is filling the store of these locks. The caller must hold the manifest's lock."""
    gone = True
    for path in folder.glob(f"{_USER}*.lock"):
        with locked(path, wait=False) as dead:
            if dead:  # no process uses its name any more
                with suppress(OSError):
                    path.unlink()
            gone = gone and dead
    return gone


def _write_synced(path: Path, data: memoryview) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE file systems report that they cannot sync a directory; rename is all they offer.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)


def _write_error(path: Path, *, size: int, error: OSError, key: str) -> SepoError:
    try:
        existing = next(folder for folder in (path, *path.parents) if folder.is_dir())
        free = f"{shutil.disk_usage(existing).free} bytes free"
    except (OSError, StopIteration):
        free = "free space unknown"
    remedy = "free space" if error.errno in _NO_SPACE else "make it writable"
    return SepoError(
        f"cannot write {path} ({size} bytes needed, {free}): {error.strerror or error}; {remedy} or set another "
        f"{key}; finished {_PIECES.get(key, 'parts')} are kept, and the next run resumes from them"
    )
