"""A small score store for tests that fill, interrupt, damage and read it."""

import math
from pathlib import Path

import numpy as np

from sepo.score_store import AnswerText, RowText, ScoreStore

ROWS, SHARD_ROWS = 47, 5
SHARDS = math.ceil(ROWS / SHARD_ROWS)
COLUMNS = ("chosen_scores", "rejected_scores")
IDENTITY = {"rows": "sha256:1f", "oracle": {"weights": "sha256:2e", "quantization_bit": None}, "cutoff_len": 2048}


def scores(start: int, stop: int) -> dict[str, list[np.ndarray]]:
    rows = [np.arange(row % 7, dtype=np.float64) / 3 - row for row in range(start, stop)]
    return {name: [row * (1 + i) for row in rows] for i, name in enumerate(COLUMNS)}


def open_store(root: Path, **changed) -> ScoreStore:
    settings = {"identity": IDENTITY, "rows": ROWS, "columns": COLUMNS, "shard_rows": SHARD_ROWS, **changed}
    return ScoreStore.open(root=root, **settings)


def filled(root: Path, **changed) -> ScoreStore:
    store = open_store(root, **changed)
    store.fill(scores)
    return store


def tree(store: ScoreStore) -> dict[str, bytes]:
    return {str(file.relative_to(store.path)): file.read_bytes() for file in sorted(store.path.rglob("*"))}


def row_text(row):
    """Return the text of a row, with multi-byte characters and an empty token."""
    return RowText(
        f"question {row} ☃\x1b",
        AnswerText(("It", " has", f" {row}", "🕷", "", ".", "<|im_end|>"), ((3, "\ufffd"), (6, ""))),
        AnswerText((" no",) * (row % 4)),
    )


def batches(size=10, rows=ROWS):
    return lambda: ([row_text(row) for row in range(start, min(start + size, rows))] for start in range(0, rows, size))
