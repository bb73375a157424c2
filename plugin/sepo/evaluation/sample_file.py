"""The files of `sepo sample`: responses as JSON lines that an interrupted run continues, and what they depend on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sepo.errors import SepoError
from sepo.files import write_whole

SAMPLES, SETTINGS = "samples.jsonl", "sampling.json"
_LOCK = ".sampling.lock"

Row = dict[str, Any]


class SampleFile:
    """The samples in a directory. Use ``open_samples``.

    Attributes:
        rows: the complete lines by ``id`` of their prompt.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows = _complete_rows(path)

    def add(self, row: Row) -> None:
        """Append a line; once this returns, the line survives a crash of process and machine.

        Raises:
            SepoError: it cannot be written.
        """
        try:
            with open(self._path, "ab") as file:
                file.write(_line(row))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SepoError(
                f"cannot write {self._path}: {error.strerror}; the complete lines are kept, and the same command "
                "continues."
            ) from error
        self.rows[row["id"]] = row

    def sort(self) -> None:
        """Write the lines in the order of their prompts, so that the file does not depend on interruptions."""
        text = b"".join(_line(self.rows[name]) for name in sorted(self.rows))
        if text != self._path.read_bytes():
            write_whole(self._path, text)


@contextmanager
def open_samples(folder: Path, *, settings: Mapping[str, Any], notes: Mapping[str, Any]) -> Iterator[SampleFile]:
    """Open the samples in a directory, to begin or to continue them; one process at a time.

    Args:
        folder: the directory; created if absent.
        settings: everything that the samples depend on, as JSON; stored when the samples are begun, and compared when
            they are continued.
        notes: what is stored in addition and not compared.

    Raises:
        SepoError: the directory has samples with other settings or other files, a file is damaged or cannot be written,
            or another process writes there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise SepoError(f"-o {folder}: another process writes there; wait for it, or name another directory.") from None
    except OSError as error:
        raise SepoError(f"-o {folder} cannot be written ({error.strerror}); name another directory.") from error
    try:
        _begin_or_compare(folder, settings, notes)
        yield SampleFile(folder / SAMPLES)
    finally:
        lock.release()


def _begin_or_compare(folder: Path, settings: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
    stored = folder / SETTINGS
    if not stored.exists():
        if (folder / SAMPLES).exists():
            raise SepoError(
                f"-o {folder} has {SAMPLES} and no {SETTINGS}, so its settings are unknown; name another directory."
            )
        write_whole(stored, json.dumps({"settings": settings, "notes": notes}, indent=1, ensure_ascii=False) + "\n")
        (folder / SAMPLES).touch()
        return
    try:
        found = json.loads(stored.read_text(encoding="utf-8"))["settings"]
        differing = [name for name in (*settings, *found) if settings.get(name) != found.get(name)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SepoError(f"{stored} cannot be read ({error!r}); name another directory.") from error
    if differing:
        name = differing[0]
        raise SepoError(
            f"-o {folder} has samples with {name} {json.dumps(found.get(name))}, and this run has "
            f"{json.dumps(settings.get(name))}; repeat that run's options to continue it, or name another directory."
        )


def _complete_rows(path: Path) -> dict[int, Row]:
    """Return the lines by prompt, without a last line that was cut, which is removed from the file."""
    path.touch()
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    rows: dict[int, Row] = {}
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
            rows[int(row["id"])] = row
        except (ValueError, KeyError, TypeError) as error:
            raise SepoError(
                f"line {number} of {path} is damaged ({error!r}); remove the line, and its prompt is sampled again."
            ) from error
    return rows


def _line(row: Row) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()
