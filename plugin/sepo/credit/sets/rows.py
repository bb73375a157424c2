"""Reading of published files: rows with the place that error messages name, checked fields, and counts of what is left.

Structural damage (not JSON, a missing field, a value of another type, offsets outside the text) is an error that names
the file and the row. Rows that are well-formed and cannot be used, which the published files contain, are left out and
counted by reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sepo.credit.data import LabelledPair
from sepo.errors import SepoError

Spans = tuple[tuple[int, int], ...]
"""Character ranges, start and end (exclusive)."""


@dataclass(frozen=True)
class LeftOut:
    """Rows of a published file that are not used.

    Args:
        count: number of rows.
        first: place of the first one.
    """

    count: int
    first: str


@dataclass
class Reading:
    """What was read from a data set's files; adapters fill it.

    Args:
        skip_damaged: leave out damaged rows instead of raising.

    Attributes:
        rows: number of rows (lines, objects) of the files.
        pairs: the span-labelled pairs, in the order of the files.
        left_out: by reason, the rows that are not used.
    """

    skip_damaged: bool = False
    rows: int = 0
    pairs: list[LabelledPair] = field(default_factory=list)
    left_out: dict[str, LeftOut] = field(default_factory=dict)

    def leave_out(self, reason: str, where: str) -> None:
        """Count a row that is not used."""
        before = self.left_out.get(reason)
        self.left_out[reason] = LeftOut(1, where) if before is None else LeftOut(before.count + 1, before.first)

    def add(self, **values: Any) -> None:
        """Append a pair, whose ``row`` is its place among the pairs."""
        self.pairs.append(LabelledPair(row=len(self.pairs), **values))

    def each(self, rows: Iterator[tuple[str, Any]], use: Callable[[Any, str], None]) -> None:
        """Call ``use`` with every row and its place.

        Raises:
            SepoError: a row is damaged, unless damaged rows are skipped.
        """
        for where, row in rows:
            self.rows += 1
            try:
                if isinstance(row, _Unreadable):
                    raise SepoError(row.message)
                use(row, where)
            except SepoError as error:
                if not self.skip_damaged:
                    raise SepoError(f"{error} (--skip-damaged leaves such rows out.)") from error
                self.leave_out("damaged", where)


@dataclass(frozen=True)
class _Unreadable:
    message: str


def read_text(path: Path, *, expected: str) -> str:
    """Return the text of a UTF-8 file without a byte order mark.

    Raises:
        SepoError: the file cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SepoError(f"{path} cannot be read as UTF-8 text ({error}); expected {expected}.") from error


def lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank with their numbers, from 1.

    Only a line feed ends a line: other separators (U+2028, U+0085) are part of texts.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.removesuffix("\r")


def json_rows(path: Path, *, expected: str) -> Iterator[tuple[str, Any]]:
    """Yield the objects of a JSON list, or of one JSON object per line, each with its place for error messages.

    Args:
        path: the file; a text that begins with ``[`` is a list.
        expected: the published file and its format, for error messages.

    Raises:
        SepoError: the file cannot be read, has no row, or its list is not JSON.
    """
    text = read_text(path, expected=expected)
    if not text.strip():
        raise SepoError(f"{path} is empty; expected {expected}.")
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SepoError(f"{path} is not JSON ({error}); expected {expected}.") from None
        yield from ((where := f"row {index} of {path}", _encodable(row, where)) for index, row in enumerate(rows))
        return
    for number, line in lines(text):
        where = f"line {number} of {path}"
        try:
            row = _encodable(json.loads(line), where)
        except (ValueError, RecursionError) as error:
            row = _Unreadable(f"{where} is not JSON ({error}); expected {expected}.")
        yield where, row


def _encodable(row: Any, where: str) -> Any:
    """Return the row; one with half of a surrogate pair, which no tokenizer can encode, as unreadable."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return _Unreadable(f"{where} has {error.object[error.start]!r}, half of a surrogate pair; expected characters.")
    return row


def short(value: Any) -> str:
    """Return a value as Python writes it, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def value_of(row: Any, key: str, where: str, *, expected: str) -> Any:
    """Return a field of a row.

    Raises:
        SepoError: the row is not an object, or lacks the field.
    """
    if not isinstance(row, Mapping):
        raise SepoError(f"{where} is {short(row)}, expected an object with {key}, {expected}.")
    if key not in row:
        fields = ", ".join(map(str, row)) or "no fields"
        raise SepoError(f"{where} has {fields}; expected {key}, {expected}.")
    return row[key]


def text_of(row: Any, key: str, where: str) -> str:
    """Return a field that is a string, not blank.

    Raises:
        SepoError: it is missing, or something else.
    """
    value = value_of(row, key, where, expected="a string")
    if not isinstance(value, str) or not value.strip():
        raise SepoError(f"{where}: {key} is {short(value)}, expected a string that is not blank.")
    return value


def texts_of(row: Any, key: str, where: str) -> list[str]:
    """Return a field that is a list of strings with at least one.

    Raises:
        SepoError: it is missing, or something else.
    """
    value = value_of(row, key, where, expected="a list of strings")
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise SepoError(f"{where}: {key} is {short(value)}, expected a list of strings.")
    return value


def objects_of(row: Any, key: str, where: str) -> list[Mapping[str, Any]]:
    """Return a field that is a list of objects.

    Raises:
        SepoError: it is missing, or something else.
    """
    value = value_of(row, key, where, expected="a list of objects")
    if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
        raise SepoError(f"{where}: {key} is {short(value)}, expected a list of objects.")
    return value


def whole(value: Any) -> bool:
    """Return whether a value is an integer."""
    return isinstance(value, int) and not isinstance(value, bool)


def range_of(row: Any, text: str, where: str, *, of: str) -> tuple[int, int]:
    """Return the fields ``start`` and ``end`` of a span in characters of a text.

    Raises:
        SepoError: they are missing, no integers, or outside the text.
    """
    start, end = (value_of(row, key, where, expected="an integer, in characters") for key in ("start", "end"))
    if not whole(start) or not whole(end) or not 0 <= start < end <= len(text):
        raise SepoError(
            f"{where} has start {short(start)} and end {short(end)}, expected 0 <= start < end <= {len(text)}, the "
            f"characters of {of}."
        )
    return start, end


def joined(steps: Sequence[str]) -> tuple[str, Spans]:
    """Join the steps of a solution with line ends; return the text and the characters of each step.

    >>> joined(["a=1", "b"])
    ('a=1\\nb', ((0, 3), (4, 5)))
    """
    places, end = [], -1
    for step in steps:
        start = end + 1
        end = start + len(step)
        places.append((start, end))
    return "\n".join(steps), tuple(places)
