"""The files of `sepo sample`: responses as JSON lines that an interrupted run continues, and what they depend on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
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
        begin_or_compare(folder, settings, notes, file=SETTINGS, written=(SAMPLES,), name=f"-o {folder}")
        (folder / SAMPLES).touch()
        yield SampleFile(folder / SAMPLES)
    finally:
        lock.release()


def begin_or_compare(
    folder: Path,
    settings: Mapping[str, Any],
    notes: Mapping[str, Any],
    *,
    file: str,
    written: Sequence[str],
    name: str,
    replaces: bool = False,
) -> bool:
    """Write what samples depend on when they are begun, or compare it when they are continued.

    Args:
        folder: the directory, which exists.
        settings: everything that the samples depend on, as JSON.
        notes: what is stored in addition and not compared.
        file: name of the file of the settings.
        written: names of the files that are made with these settings.
        name: the option or key that names the directory, with its value, for messages.
        replaces: whether other settings are replaced, as there are no samples yet.

    Returns:
        Whether the settings were written.

    Raises:
        SepoError: the directory has samples with other settings or other files, or a file is damaged.
    """
    stored = folder / file
    found: Any = {}
    if stored.exists():
        try:
            found = json.loads(stored.read_text(encoding="utf-8"))["settings"]
            now = json.loads(json.dumps(settings))
            differing = [name for name in (*now, *found) if now.get(name) != found.get(name)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SepoError(f"{stored} cannot be read ({error!r}); name another directory.") from error
        if not differing:
            return False
        if not replaces:
            key = differing[0]
            raise SepoError(
                f"{name} has samples with {key} {json.dumps(found.get(key))}, and this run has "
                f"{json.dumps(settings.get(key))}; repeat that run's options to continue it, or name another directory."
            )
    else:
        for other in written:
            if (folder / other).exists():
                raise SepoError(
                    f"{name} has {other} and no {file}, so its settings are unknown; name another directory."
                )
    write_whole(stored, json.dumps({"settings": settings, "notes": notes}, indent=1, ensure_ascii=False) + "\n")
    return True


def _complete_rows(path: Path) -> dict[int, Row]:
    """Return the lines by prompt, without a last line that was cut, which is removed from the file."""
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
