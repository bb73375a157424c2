"""Lookup of training rows by their tokens, for the record of the tokens that a run selected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from sepo.selection import SIDES
from sepo.training.reward_columns import REWARD_COLUMNS
from sepo.training.selection_columns import SCORE_COLUMNS
from sepo.training.trainable_rows import list_arrays

_COLUMNS = tuple(f"{side}_input_ids" for side in SIDES)
_ROWS = 1000


class DatasetRows:
    """Index of the training rows by their token ids.

    Batches hold no row numbers, and none are added: a run records few pairs, and the index is built once, at the first
    lookup (10,000 rows in 0.1 s). Of rows with the same tokens the first is returned.

    Args:
        dataset: the training rows, with the columns that the selection or the regularizer reads.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._ids = dataset.select_columns(list(_COLUMNS)).with_format("arrow")
        scored = [pair for pair in (SCORE_COLUMNS, REWARD_COLUMNS) if set(pair) <= set(dataset.column_names)]
        self._scores: Any = dataset.select_columns(list(scored[0])) if scored else None
        self._columns = scored[0] if scored else None
        self._numbers: dict[int, int] | None = None

    def find(self, chosen: Sequence[int], rejected: Sequence[int]) -> int | None:
        """Return the number of the row with these token ids (prompts included), or None."""
        if self._numbers is None:
            self._numbers = {}
            for start in range(0, len(self._ids), _ROWS):
                block = self._ids[start : start + _ROWS]
                for index, pair in enumerate(zip(*(list_arrays(block[name]) for name in _COLUMNS), strict=True)):
                    self._numbers.setdefault(_key(*pair), start + index)
        return self._numbers.get(_key(chosen, rejected))

    def scores(self, row: int) -> tuple[Sequence[float], Sequence[float]] | None:
        """Return the stored scores or token rewards of a row by side; None if the rows have neither."""
        if self._columns is None:
            return None
        values = self._scores[row]
        return values[self._columns[0]], values[self._columns[1]]


def _key(chosen: Sequence[int] | np.ndarray, rejected: Sequence[int] | np.ndarray) -> int:
    return hash(tuple(np.asarray(ids, dtype="<i4").tobytes() for ids in (chosen, rejected)))
