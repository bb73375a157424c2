"""Files that a report writes: whole or not at all, and never over something that is not a report."""

from __future__ import annotations

from pathlib import Path

from sepo import files
from sepo.errors import SepoError

_HEAD_BYTES = 4096
"""Where a file of ours says what it is."""


def check_output(path: Path, *, mark: str, force: bool) -> Path:
    """Return the path of a file that may be written.

    Args:
        path: of the file, there or not.
        mark: what a file of ours has near its beginning.
        force: replace whatever is there.

    Raises:
        SepoError: its folder is not there, it is a folder, or something else than a report is there.
    """
    path = path.expanduser()
    if not path.absolute().parent.is_dir():
        raise SepoError(f"{path} cannot be written: there is no folder {path.absolute().parent}.")
    if path.is_dir():
        raise SepoError(f"{path} is a folder; name a file with -o.")
    if path.exists() and not force and not _is_ours(path, mark):
        raise SepoError(
            f"{path} is there and is no report of ours, so it is not replaced; name another file with -o, or write "
            "--force."
        )
    return path


def write_report(path: Path, data: bytes) -> None:
    """Write a file that appears when it is whole.

    Raises:
        SepoError: the disk refuses.
    """
    try:
        files.write_whole(path, data)
    except OSError as error:
        raise SepoError(f"{path} cannot be written: {error.strerror or error}; name another place with -o.") from error


def _is_ours(path: Path, mark: str) -> bool:
    try:
        with path.open("rb") as file:
            return mark.encode() in file.read(_HEAD_BYTES)
    except OSError:
        return False
