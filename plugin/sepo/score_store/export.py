"""Export of rows as JSON lines or Parquet, written atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sepo.errors import SepoError
from sepo.files import replaced
from sepo.score_store import ScoreStore

Rows = Sequence[Mapping[str, Any]]

_LINES, _PARQUET = (".jsonl", ".json"), ".parquet"


def checked_output(path: Path) -> Path:
    """Return the expanded path of an output file.

    Raises:
        SepoError: If its extension is not supported, or its directory does not exist.
    """
    path = path.expanduser()
    if path.suffix not in (*_LINES, _PARQUET):
        raise SepoError(
            f"-o {path}: the extension is {path.suffix!r}, expected .jsonl, .json (both JSON lines) or .parquet."
        )
    if not path.absolute().parent.is_dir():
        raise SepoError(f"-o {path}: the directory {path.absolute().parent} does not exist; create it.")
    return path


def write_rows(batches: Iterable[Rows], output: Path, *, schema: pa.Schema) -> int:
    """Write rows batch by batch; the file appears when it is complete.

    Args:
        batches: the rows in order, each with the schema's columns.
        output: path from ``checked_output``.
        schema: schema of the rows, which Parquet needs.

    Returns:
        The number of rows written.

    Raises:
        SepoError: If the file system refuses.
    """
    writer = _write_parquet if output.suffix == _PARQUET else _write_lines
    try:
        with replaced(output) as temporary:
            count = writer(batches, temporary, schema)
    except OSError as error:
        raise SepoError(
            f"cannot write {output}: {error.strerror or error}; free space or write to another file."
        ) from error
    return count


def _write_lines(batches: Iterable[Rows], path: Path, schema: pa.Schema) -> int:
    count = 0
    with open(path, "w", encoding="utf-8") as file:
        for rows in batches:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            count += len(rows)
        file.flush()
        os.fsync(file.fileno())
    return count


def _write_parquet(batches: Iterable[Rows], path: Path, schema: pa.Schema) -> int:
    count = 0
    with pq.ParquetWriter(path, schema) as writer:
        for rows in batches:
            writer.write_table(pa.Table.from_pylist(list(rows), schema=schema))
            count += len(rows)
    return count


def export_scores(store: ScoreStore, output: Path) -> int:
    """Write the rows of a store: row number in the data set, and scores of both sides.

    Args:
        store: a complete store.
        output: path from ``checked_output``.

    Returns:
        The number of rows written.

    Raises:
        SepoError: If a shard is missing or damaged, or the file system refuses.
    """
    table = store.table()
    columns = store.manifest.columns
    schema = pa.schema([("row", pa.int64()), *((name, pa.list_(pa.float32())) for name in columns)])

    def batches() -> Iterator[Rows]:
        row = 0
        for batch in table.to_batches():
            rows = batch.to_pylist()
            yield [{"row": row + index, **values} for index, values in enumerate(rows)]
            row += len(rows)

    return write_rows(batches(), output, schema=schema)
