"""The first rows of a data set's local files, read without loading the data set."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llamafactory.extras.constants import FILEEXT2TYPE

from sepo.errors import SepoError, first_line
from sepo.text.messages import kind_of

_ROWS = 100
_BYTES = 2**20
_BETWEEN = re.compile(r"[\s,]*")
"""What separates the items of a list; it matches the empty text, too."""


class FirstRows(NamedTuple):
    """Rows at the beginning of a file.

    Args:
        rows: the rows.
        whole: whether the file has no other rows.
    """

    rows: list[dict[str, Any]]
    whole: bool


def first_rows(path: Path, *, name: str) -> FirstRows | None:
    """Read the first rows of a data set's file, or of the files in its directory.

    Args:
        path: the file or directory that the data set's entry names.
        name: name of the data set in errors.

    Returns:
        The rows, or None if files of this type are only read by the loader.

    Raises:
        SepoError: the type of a file is unknown, a file cannot be read, is not valid, or contains something else than
            rows.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    if not files:
        raise SepoError(f"dataset '{name}': the directory {path} is empty.")
    kinds = {FILEEXT2TYPE.get(file.suffix[1:]) for file in files}
    if None in kinds or len(kinds) > 1:
        types = ", ".join(sorted({file.suffix or "none" for file in files}))
        raise SepoError(
            f"dataset '{name}': {path} has files of the types {types}, expected one of {', '.join(FILEEXT2TYPE)}."
        )
    read = {"json": _json_rows, "parquet": _parquet_rows}.get(str(kinds.pop()))
    if read is None:
        return None
    rows: list[dict[str, Any]] = []
    whole = True
    for file in files:
        if len(rows) == _ROWS:
            return FirstRows(rows, whole=False)
        try:
            found = read(file)
        except (OSError, ValueError) as error:
            reason = first_line(error).rstrip(".")
            raise SepoError(f"dataset '{name}': {file} cannot be read as {file.suffix[1:]}: {reason}.") from error
        if found is None or not (found.rows or found.whole):
            return None
        for row in found.rows:
            if not isinstance(row, dict):
                raise SepoError(f"dataset '{name}': {file} has the row {json.dumps(row)[:40]}; an object is expected.")
        whole = whole and found.whole and len(found.rows) <= _ROWS - len(rows)
        rows += found.rows[: _ROWS - len(rows)]
    if not rows:
        raise SepoError(f"dataset '{name}' has no rows: {path} is empty.")
    return FirstRows(rows, whole)


def mixed_types(file: Path) -> str | None:
    """Describe the first field of a JSON file whose values have several types, which a column cannot have.

    Args:
        file: the file; other types of files have no such fields.

    Returns:
        A phrase with the field, its types and rows; None if there is no such field, or the file is not JSON.
    """
    if FILEEXT2TYPE.get(file.suffix[1:]) != "json":
        return None
    try:
        text = file.read_text(encoding="utf-8-sig")
        rows = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [*map(json.loads, filter(str.strip, text.split("\n")))]
        )
    except (OSError, ValueError):
        return None
    seen: dict[str, tuple[str, int]] = {}
    for number, row in enumerate(rows):
        for field, kind in _fields(row, ""):
            first, where = seen.setdefault(field, (kind, number))
            if kind != first:
                return f"{field[1:]} is {first} in row {where} and {kind} in row {number}"
    return None


def _fields(value: Any, field: str) -> Iterator[tuple[str, str]]:
    """Yield the paths of all fields with what they are; null has every type."""
    if value is None:
        return
    if field:
        yield field, kind_of(value)
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _fields(item, f"{field}.{name}")
    elif isinstance(value, list):
        for item in value:
            yield from _fields(item, f"{field}[]")


def _json_rows(file: Path) -> FirstRows | None:
    with file.open("rb") as stream:
        head = stream.read(_BYTES + 1)
    whole = len(head) <= _BYTES
    text = codecs.getincrementaldecoder("utf-8-sig")().decode(head, final=whole)
    start = text.lstrip()
    if start.startswith("["):
        return _items(text, len(text) - len(start) + 1, whole=whole)
    return _lines(text, whole=whole)


def _items(text: str, place: int, *, whole: bool) -> FirstRows:
    """Return the items of a JSON list, of which ``text`` may be the beginning."""
    rows: list[Any] = []
    decoder = json.JSONDecoder()
    while len(rows) < _ROWS:
        place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]
        if text.startswith("]", place):
            return FirstRows(rows, whole=True)
        try:
            row, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError:
            if whole:
                raise
            break
        rows.append(row)
    return FirstRows(rows, whole=False)


def _lines(text: str, *, whole: bool) -> FirstRows | None:
    """Return the rows of a file with one JSON object per line; None if it is one object with columns."""
    rows: list[Any] = []
    lines = text.split("\n")
    for number, line in enumerate(lines if whole else lines[:-1], start=1):
        if len(rows) == _ROWS:
            return FirstRows(rows, whole=False)
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == 1 and _is_json(text, whole=whole):
                return None
            raise ValueError(f"line {number}: {error}") from error
    return FirstRows(rows, whole)


def _is_json(text: str, *, whole: bool) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return not whole
    return True


def _parquet_rows(file: Path) -> FirstRows:
    import pyarrow.parquet

    opened = pyarrow.parquet.ParquetFile(file)
    batch = next(opened.iter_batches(batch_size=_ROWS), None)
    rows = [] if batch is None else batch.to_pylist()
    return FirstRows(rows, whole=len(rows) == opened.metadata.num_rows)
