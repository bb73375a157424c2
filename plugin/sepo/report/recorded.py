"""Pairs and score distributions that a run recorded during training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from sepo.report.spreads import Pieces, spreads
from sepo.report.subject import Pair, Side, Spread
from sepo.runs.token_samples_reader import RECORD_FILE, RecordedAnswer, RecordedPair, read_record
from sepo.selection import SIDES


def recorded_pairs(folder: Path, missing: list[str]) -> list[Pair]:
    """Return the pairs of a run's record, in their order.

    Args:
        folder: the run's ``output_dir``.
        missing: list to which a sentence is appended for each unreadable part.
    """
    try:
        found, unread = read_record(folder)
    except OSError as error:
        missing.append(f"{RECORD_FILE} cannot be read ({error.strerror or error}).")
        return []
    if unread:
        missing.append(f"{unread} lines of {RECORD_FILE} cannot be read; the others are shown.")
    return [_pair(pair) for pair in found]


def recorded_spreads(pairs: Iterable[Pair], *, rejected_largest: bool) -> dict[str, Spread]:
    """Return the score distributions of the recorded pairs, by side."""
    sides = {side: _pieces([getattr(pair, side).scores for pair in pairs]) for side in SIDES}
    return spreads(sides, highest={"chosen": True, "rejected": rejected_largest})


def _pieces(rows: Sequence[np.ndarray]) -> Pieces:
    return lambda: [(np.concatenate(rows), np.array([len(row) for row in rows]))] if rows else []


def _pair(pair: RecordedPair) -> Pair:
    row = -1 if pair.row is None else pair.row
    return Pair(row, pair.prompt, _side(pair.chosen), _side(pair.rejected), pair.step)


def _side(answer: RecordedAnswer) -> Side:
    with np.errstate(over="ignore"):
        scores = np.array(answer.scores, dtype=np.float32)
    scores[~np.isfinite(scores)] = np.nan
    candidates = None if answer.candidates is None else np.array(answer.candidates, dtype=bool)
    weights = None if answer.weights is None else np.array(answer.weights, dtype=np.float64)
    return Side(answer.tokens, scores, np.array(answer.selected, dtype=bool), candidates, weights)
