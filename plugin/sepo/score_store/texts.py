"""Texts of a store's rows, for display: prompts, and the text of every scored token.

Scoring does not read them, no key covers them and no run needs them: a store is complete without them. Like the scores
they depend on content only: the same rows in the same tokens give the same file.
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
"""Number of rows in memory at a time, when writing and reading."""

_AGAIN = "the next run with this store, or `sepo score`, writes it again"


@dataclass(frozen=True)
class AnswerText:
    """A response in the tokens that are scored.

    Attributes:
        tokens: the text of each token; concatenated they give the response and its end of turn. If several tokens make
            up one character, the first has it and the others are empty. One entry more than scores if the first token
            of the row cannot be scored.
        step_texts: (token, text) for tokens whose text differs in the division into steps: empty for a special token,
            U+FFFD for a part of a character.
    """

    tokens: Sequence[str]
    step_texts: Sequence[tuple[int, str]] = field(default=())


@dataclass(frozen=True)
class RowText:
    """Texts of one row.

    Attributes:
        prompt: the conversation before the responses, as plain text.
        chosen: the chosen response.
        rejected: the rejected response.
    """

    prompt: str
    chosen: AnswerText
    rejected: AnswerText


class StoredTexts:
    """Texts of one store.

    Args:
        folder: directory of the store.
        rows: number of rows of the store.
        locks: directory of its locks.
    """

    def __init__(self, folder: Path, *, rows: int, locks: Path) -> None:
        self._file, self._sidecar, self._rows, self._locks = folder / TEXTS_FILE, folder / _SIDECAR, rows, locks

    @property
    def present(self) -> bool:
        """Whether one of the files exists, sound or not."""
        return self._file.exists() or self._sidecar.exists()

    def problem(self) -> str | None:
        """Read the file and return its problem, or None if it is sound."""
        try:
            record = read_if_there(self._sidecar)
            digest = file_digest(self._file)
        except FileNotFoundError:
            return f"missing; {_AGAIN}"
        except (SepoError, OSError) as error:
            return f"cannot be read ({error})"
        if record == self._record(digest):
            return None
        return f"damaged or incomplete (its sha256 is {digest}); {_AGAIN}"

    def leave(self, batches: Callable[[], Iterable[Sequence[RowText]]]) -> bool:
        """Write the texts if they are missing or damaged and no other process is writing them.

        Args:
            batches: function that yields all rows in order, in batches; called only if the texts are to be written.

        Returns:
            Whether this call wrote them.

        Raises:
            SepoError: If the file system refuses, or the number of rows differs from the store's.
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
                    raise SepoError(
                        f"{written} rows of texts for a store of {self._rows} rows; they belong to another data set."
                    )
                digest = file_digest(temporary)
            replace_durably(path=self._sidecar, data=self._record(digest))
        return True

    def read(self, rows: Iterable[int]) -> Iterator[tuple[int, RowText]]:
        """Yield (row, texts) for some rows, in ascending order, without checking the digest (see :meth:`problem`).

        Raises:
            SepoError: If the file cannot be read.
        """
        numbers = sorted(set(rows))
        try:
            with pq.ParquetFile(self._file, memory_map=True) as file:
                first = 0
                for group in range(file.num_row_groups):
                    count = file.metadata.row_group(group).num_rows
                    here = [row for row in numbers if first <= row < first + count]
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
        responses: list[AnswerText] = [getattr(row, side) for row in rows]
        columns[f"{side}_tokens"] = [response.tokens for response in responses]
        columns[f"{side}_step_texts"] = [
            [{"token": token, "text": text} for token, text in response.step_texts] for response in responses
        ]
    return columns


def _row_text(values: dict[str, Any]) -> RowText:
    responses = [
        AnswerText(
            tuple(values[f"{side}_tokens"]),
            tuple((piece["token"], piece["text"]) for piece in values[f"{side}_step_texts"]),
        )
        for side in ("chosen", "rejected")
    ]
    return RowText(values["prompt"], responses[0], responses[1])
