"""Shards: their rows, their encoding, and validation of the scores that a scorer returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from sepo.errors import SepoError

Scores: TypeAlias = Mapping[str, Sequence[Any]]
"""Rows by column, one per dataset row: a sequence of floats or a one-dimensional numpy array, one value per token."""

_MOST_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class ShardRange:
    """Rows ``[start, stop)`` of the dataset, stored in shard number ``index``."""

    index: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of rows in the shard."""
        return self.stop - self.start

    @property
    def name(self) -> str:
        """File name without its extension."""
        return f"shard-{self.index:05d}"


def split_rows(*, rows: int, shard_rows: int) -> list[ShardRange]:
    """Return the shards of ``rows`` rows in order; only the last one may hold fewer than ``shard_rows``."""
    starts = range(0, rows, shard_rows)
    return [ShardRange(index, start, min(start + shard_rows, rows)) for index, start in enumerate(starts)]


def shard_schema(columns: Sequence[str]) -> pa.Schema:
    """Return the Arrow schema of every shard: ``list<float32>`` per column, no metadata."""
    return pa.schema([pa.field(name, pa.list_(pa.float32())) for name in columns])


def encode_shard(scores: Scores, *, shard: ShardRange, columns: Sequence[str]) -> pa.Buffer:
    """Return the file of a shard: one record batch in an Arrow IPC stream, the format that ``datasets`` memory-maps.

    Equal scores give equal bytes. A row may be empty (a response without tokens).

    Args:
        scores: result of ``compute(shard.start, shard.stop)``.
        shard: the requested rows.
        columns: the store's columns.

    Raises:
        SepoError: If a column is missing or unknown, the number of rows differs, or a value is not a finite float32;
            the message gives the column and the row number in the dataset.
    """
    call = f"compute({shard.start}, {shard.stop})"
    if not isinstance(scores, Mapping) or set(scores) != set(columns):
        found = sorted(map(str, scores)) if isinstance(scores, Mapping) else type(scores).__name__
        raise SepoError(f"{call} returned {found}, expected the columns {sorted(columns)}; return exactly these")
    arrays = [_encode_column(scores[name], name=name, shard=shard, call=call) for name in columns]
    sink = pa.BufferOutputStream()
    # Explicit, because the environment can change the defaults and the store guarantees its bytes.
    options = pa.ipc.IpcWriteOptions(metadata_version=pa.MetadataVersion.V5, compression=None)
    schema = shard_schema(columns)
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
    return sink.getvalue()


def map_shard(path: Path) -> pa.Table:
    """Return a shard's rows without reading them: its buffers are in the memory-mapped file."""
    # The buffers keep the mapping alive; closing releases the file descriptor, of which a large store needs thousands.
    with pa.memory_map(str(path), "r") as source, pa.ipc.open_stream(source) as reader:
        return reader.read_all()


def _encode_column(rows: Sequence[Any], *, name: str, shard: ShardRange, call: str) -> pa.Array:
    if len(rows) != shard.rows:
        raise SepoError(
            f"{call} returned {len(rows)} rows in column '{name}', expected {shard.rows} "
            f"(rows {shard.start} to {shard.stop - 1} of the dataset); return one list of scores per row, in order"
        )
    arrays = [_encode_row(row, place=f"{call}, column '{name}', row {shard.start + i}") for i, row in enumerate(rows)]
    ends = list(accumulate(map(len, arrays), initial=0))
    if ends[-1] > _MOST_TOKENS:
        raise SepoError(
            f"{call}: {ends[-1]} tokens in column '{name}', a shard holds at most {_MOST_TOKENS}; use fewer shard_rows"
        )
    values = pa.concat_arrays(arrays)
    if values.null_count or not pc.all(pc.is_finite(values)).as_py():
        _raise_for_bad_value(arrays, name=name, shard=shard, call=call)
    return pa.ListArray.from_arrays(pa.array(ends, type=pa.int32()), values)


def _encode_row(row: Any, *, place: str) -> pa.Array:
    try:
        return pa.array(row, type=pa.float32())
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise SepoError(
            f"{place}: not a one-dimensional sequence of float32 scores ({error}); return one score per token"
        ) from error


def _raise_for_bad_value(arrays: Sequence[pa.Array], *, name: str, shard: ShardRange, call: str) -> None:
    for i, array in enumerate(arrays):
        good = pc.fill_null(pc.is_finite(array), False)
        token = pc.index(good, False).as_py()
        if token >= 0:
            raise SepoError(
                f"{call}, column '{name}', row {shard.start + i}: token {token} has the score {array[token].as_py()}, "
                "expected a finite float32; check the scoring models (precision, damaged weights) on that row"
            )
