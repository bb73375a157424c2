"""Whole files or none: durable replacement, leftovers of dead writers, locks, checksums."""

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
_USER = "user-"
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def file_digest(path: Path | str) -> str:
    """Return the sha256 of a file in hexadecimal, read as a stream (memory does not grow with the file).

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_if_there(path: Path) -> bytes | None:
    """Return a file's bytes, or None where there is no such file.

    Raises:
        SepoError: the file is there and cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SepoError(
            f"cannot read {path}: {error.strerror}; restore access, or set token_scores_dir elsewhere"
        ) from error


def make_folder(path: Path) -> None:
    """Create a folder and its parents; one that is there is fine.

    Raises:
        SepoError: the disk refuses.
    """
    if path.is_dir():
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise _refused(path, wanted=0, error=error) from error


@contextmanager
def replaced_durably(path: Path, *, wanted: int = 0) -> Iterator[Path]:
    """Give the block a temporary file to write and sync; then ``path`` is all of it, on the disk, or what it was.

    The temporary file lies in the same folder (its name is unique per process and call) and is renamed, and the folder
    is synced. A failure removes it.

    Args:
        path: the file to be made or replaced.
        wanted: its size, for what is said where the disk refuses.

    Raises:
        SepoError: the disk refuses; names the path, the bytes wanted and the bytes free.
    """
    try:
        with replaced(path) as temporary:
            yield temporary
        _sync_folder(path.parent)
    except OSError as error:
        raise _refused(path, wanted=wanted, error=error) from error


def replace_durably(*, path: Path, data: bytes | memoryview) -> None:
    """Write ``data`` so that ``path`` is either what it was or all of ``data``, on the disk, at any moment.

    Raises:
        SepoError: the disk refuses; names the path, the bytes wanted and the bytes free.
    """
    with replaced_durably(path, wanted=len(data)) as temporary:
        _write_synced(temporary, memoryview(data).cast("B"))


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that dead writers of ``path`` left. Only for the holder of that file's lock."""
    prefix = f".{path.name}."
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and entry.name.endswith(".tmp"):
                # A leftover that cannot go costs space and nothing else: no reader looks at it.
                with suppress(OSError):
                    os.unlink(entry.path)


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the file lock at ``path`` for the block; yields False where it is held elsewhere and ``wait`` is False.

    The kernel frees the lock when its holder dies, however it dies. The file itself stays: removing it would let two
    processes lock two files of one name.

    Raises:
        SepoError: the lock file cannot be made or locked.
    """
    make_folder(path.parent)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=wait)
        held = True
    except Timeout:
        held = False
    except OSError as error:
        raise _refused(path, wanted=0, error=error) from error
    try:
        yield held
    finally:
        if held:
            lock.release()


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Be seen as a writer of a store for the block, also between two shards: :func:`users_gone` asks for it.

    Each writer locks a file of its own, and makes it under the manifest's lock, so that nobody begins while a store is
    being removed. Files that dead writers left are removed.

    Args:
        folder: the folder of the store's locks.

    Raises:
        SepoError: the lock file cannot be made or locked.
    """
    with ExitStack() as stack:
        with locked(folder / MANIFEST_LOCK, wait=True):
            users_gone(folder)
            path = folder / f"{_USER}{os.getpid()}-{secrets.token_hex(4)}.lock"
            stack.enter_context(locked(path, wait=True))
        stack.callback(path.unlink, missing_ok=True)
        yield


def users_gone(folder: Path) -> bool:
    """Whether no living process fills the store of these locks. Only for the holder of the manifest's lock."""
    gone = True
    for path in folder.glob(f"{_USER}*.lock"):
        with locked(path, wait=False) as dead:
            if dead:  # its name is nobody's any more
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
        # Some network and FUSE file systems cannot sync a folder and say so; their rename is as durable as it gets.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)


def _refused(path: Path, *, wanted: int, error: OSError) -> SepoError:
    try:
        existing = next(folder for folder in (path, *path.parents) if folder.is_dir())
        free = f"{shutil.disk_usage(existing).free} bytes free"
    except (OSError, StopIteration):
        free = "free space unknown"
    remedy = "free space" if error.errno in _NO_SPACE else "make it writable"
    return SepoError(
        f"cannot write {path} ({wanted} bytes wanted, {free}): {error.strerror or error}; {remedy} or set "
        "token_scores_dir elsewhere; what is done is kept and the run resumes"
    )
