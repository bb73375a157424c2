"""What a store's rows say: prompts, and the text of every token that has a score, for people who look at them.

Scoring does not read it, no key covers it and no run needs it: a store is complete without. It is content only, like
the scores: the same rows in the same tokens give the same file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sepo.errors import SepoError
from sepo.score_store.disk import (
    file_digest,
    in_use,
    locked,
    read_if_there,
    remove_leftovers,
    replace_durably,
    replaced_durably,
)
from sepo.score_store.identity import JSON, canonical_json

TEXTS_FILE = "texts.parquet"
_SIDECAR = "texts.json"
_GROUP = 512
"""Rows that are held at a time, in writing and in reading."""

_AGAIN = "the next run with this store, or `sepo score`, writes it again"


@dataclass(frozen=True)
class AnswerText:
    """One answer in the tokens that its scores are of.

    Attributes:
        tokens: the text of each; together they spell the answer and what ends its turn. Of the tokens that make up one
            character the first has it and the others are empty. One more than there are scores where the first token
            of a row cannot be scored.
        step_texts: (token, text) where the division into steps reads another text than the token's: nothing for a
            special token, U+FFFD for a part of a character.
    """

    tokens: Sequence[str]
    step_texts: Sequence[tuple[int, str]] = field(default=())


@dataclass(frozen=True)
class RowText:
    """One row.

    Attributes:
        prompt: what the answers answer, as plain text.
        chosen: the better answer.
        rejected: the other one.
    """

    prompt: str
    chosen: AnswerText
    rejected: AnswerText


class StoredTexts:
    """The texts of one store.

    Args:
        folder: the store's.
        rows: how many it has.
        locks: the folder of its locks.
    """

    def __init__(self, folder: Path, *, rows: int, locks: Path) -> None:
        self._file, self._sidecar, self._rows, self._locks = folder / TEXTS_FILE, folder / _SIDECAR, rows, locks

    @property
    def present(self) -> bool:
        """Whether there is something, sound or not."""
        return self._file.exists() or self._sidecar.exists()

    def problem(self) -> str | None:
        """Read the file and say what is wrong with it; None where it is sound."""
        try:
            record = read_if_there(self._sidecar)
            digest = file_digest(self._file)
        except FileNotFoundError:
            return f"not there; {_AGAIN}"
        except (SepoError, OSError) as error:
            return f"cannot be read ({error})"
        if record == self._record(digest):
            return None
        return f"damaged, or not written to its end (its sha256 is {digest}); {_AGAIN}"

    def leave(self, batches: Callable[[], Iterable[Sequence[RowText]]]) -> bool:
        """Write the texts, where they are not there and no other process is at it.

        Args:
            batches: called where there is something to do: all rows in order, some at a time.

        Returns:
            Whether they were written now.

        Raises:
            SepoError: the disk refuses, or the rows are not as many as the store's.
        """
        if self.problem() is None:
            return False
        with in_use(self._locks), locked(self._locks / "texts.lock", wait=False) as held:
            if not held or self.problem() is None:
                return False
            for path in (self._file, self._sidecar):
                remove_leftovers(path)
            with replaced_durably(self._file) as temporary:
                written = _write(temporary, batches())
                if written != self._rows:
                    raise SepoError(f"{written} rows of texts for a store of {self._rows}; they belong to other data.")
                digest = file_digest(temporary)
            replace_durably(path=self._sidecar, data=self._record(digest))
        return True

    def read(self, rows: Iterable[int]) -> Iterator[tuple[int, RowText]]:
        """Yield (row, its texts) for some rows, in their order; see :meth:`problem` for whether they can be relied on.

        Raises:
            SepoError: the file cannot be read.
        """
        wanted = sorted(set(rows))
        try:
            with pq.ParquetFile(self._file, memory_map=True) as file:
                first = 0
                for group in range(file.num_row_groups):
                    count = file.metadata.row_group(group).num_rows
                    here = [row for row in wanted if first <= row < first + count]
                    if here:
                        table = file.read_row_group(group).take([row - first for row in here])
                        for row, values in zip(here, table.to_pylist(), strict=True):
                            yield row, _row_text(values)
                    first += count
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise SepoError(f"{self._file} cannot be read ({error}); {_AGAIN}.") from error

    def _record(self, digest: str) -> bytes:
        body: dict[str, JSON] = {"rows": self._rows, "sha256": digest, "store": self._file.parent.name}
        return canonical_json(body, name="texts") + b"\n"


def _schema() -> pa.Schema:
    pieces = pa.list_(pa.struct([("token", pa.int32()), ("text", pa.string())]))
    fields: list[tuple[str, pa.DataType]] = [("prompt", pa.string())]
    for side in ("chosen", "rejected"):
        fields += [(f"{side}_tokens", pa.list_(pa.string())), (f"{side}_step_texts", pieces)]
    return pa.schema(fields)


def _write(path: Path, batches: Iterable[Sequence[RowText]]) -> int:
    rows = (row for batch in batches for row in batch)
    schema, count = _schema(), 0
    with open(path, "xb") as file:
        with pq.ParquetWriter(file, schema, compression="zstd", store_schema=False) as writer:
            while group := list(islice(rows, _GROUP)):
                writer.write_table(pa.table(_columns(group), schema=schema), row_group_size=_GROUP)
                count += len(group)
        file.flush()
        os.fsync(file.fileno())
    return count


def _columns(rows: Sequence[RowText]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {"prompt": [row.prompt for row in rows]}
    for side in ("chosen", "rejected"):
        answers: list[AnswerText] = [getattr(row, side) for row in rows]
        columns[f"{side}_tokens"] = [answer.tokens for answer in answers]
        columns[f"{side}_step_texts"] = [
            [{"token": token, "text": text} for token, text in answer.step_texts] for answer in answers
        ]
    return columns


def _row_text(values: dict[str, Any]) -> RowText:
    answers = [
        AnswerText(
            tuple(values[f"{side}_tokens"]),
            tuple((piece["token"], piece["text"]) for piece in values[f"{side}_step_texts"]),
        )
        for side in ("chosen", "rejected")
    ]
    return RowText(values["prompt"], answers[0], answers[1])
