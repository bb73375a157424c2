"""Summary statistics of a store, read from its memory-mapped files in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sepo.score_store import ScoreStore
from sepo.score_store.distribution import Distribution, distribution

SHARE = 0.3
"""Share of each response's tokens whose part of the total score is reported: SePO's selection (section 4.1)."""


@dataclass(frozen=True)
class StoreSummary:
    """Summary of one store.

    Attributes:
        path: directory of the store.
        rows: number of pairs.
        sides: distribution by column.
    """

    path: Path
    rows: int
    sides: dict[str, Distribution]

    @property
    def tokens(self) -> int:
        """Number of scored tokens in all columns."""
        return sum(side.tokens for side in self.sides.values())


def summarize(store: ScoreStore) -> StoreSummary:
    """Compute the summary of a complete store.

    Args:
        store: a store with all shards present.

    Raises:
        SepoError: If a shard is missing or damaged.
    """
    table = store.table()

    def side(column: str) -> Distribution:
        return distribution(lambda: pieces(table, column), ratio=SHARE, largest=is_chosen(column))

    return StoreSummary(store.path, table.num_rows, {column: side(column) for column in store.manifest.columns})


def is_chosen(column: str) -> bool:
    """Return whether a column belongs to chosen responses (highest scores selected) or rejected ones (lowest)."""
    return column.startswith("chosen")


def pieces(table: pa.Table, column: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a column as (flat float32 scores, tokens per response), a shard at a time."""
    for chunk in table.column(column).chunks:
        flat = np.array(chunk.flatten().to_numpy(zero_copy_only=False), dtype=np.float32)
        lengths = np.array(chunk.value_lengths().to_numpy(zero_copy_only=False), dtype=np.int64)
        yield torch.from_numpy(flat), torch.from_numpy(lengths)
