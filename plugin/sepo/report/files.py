"""Output files of a report, written atomically and never over a file that is not a report."""

from __future__ import annotations

from pathlib import Path

from sepo import files
from sepo.errors import SepoError

_HEAD_BYTES = 4096
"""Number of leading bytes that contain the mark of a report."""


def check_output(path: Path, *, mark: str, force: bool) -> Path:
    """Check that a file may be written and return its path.

    Args:
        path: path of the file, which may exist.
        mark: text near the beginning of every file of a report.
        force: replace any existing file.

    Raises:
        SepoError: its directory does not exist, it is a directory, or an existing file is not a report.
    """
    path = path.expanduser()
    if not path.absolute().parent.is_dir():
        raise SepoError(f"{path} cannot be written: the directory {path.absolute().parent} does not exist.")
    if path.is_dir():
        raise SepoError(f"{path} is a directory; name a file with -o.")
    if path.exists() and not force and not _is_report(path, mark):
        raise SepoError(
            f"{path} exists and is not a sepo report, so it is not replaced; name another file with -o, or pass "
            "--force."
        )
    return path


def write_report(path: Path, data: bytes) -> None:
    """Write a file atomically.

    Raises:
        SepoError: the file cannot be written.
    """
    try:
        files.write_whole(path, data)
    except OSError as error:
        raise SepoError(f"{path} cannot be written: {error.strerror or error}; name another file with -o.") from error


def _is_report(path: Path, mark: str) -> bool:
    try:
        with path.open("rb") as file:
            return mark.encode() in file.read(_HEAD_BYTES)
    except OSError:
        return False
