"""Reader of the sample of pairs that a run recorded. Imports neither torch nor transformers.

The file is written by ``sepo.runs.token_samples``.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sepo.selection import SIDES

RECORD_FILE = "_sepo_tokens.jsonl"
"""File in the run's ``output_dir``, under a name that no trainer pushes to a hub, since it holds texts of the data. One
JSON object per line: ``step``, ``row`` (null if unknown), ``prompt``, and for ``chosen`` and ``rejected`` the
``tokens`` of the response (texts), their ``scores`` (null for a token without score), ``selected``, the indices of
the tokens that were optimized, if the run weighs tokens ``weights``, the weight of each of these, and, if there are
any, ``template``, the indices of the tokens of the chat template, which may not be selected."""


@dataclass(frozen=True)
class RecordedAnswer:
    """One response of a recorded pair.

    Args:
        tokens: the text of each token.
        scores: the score of each token; NaN for a token without score.
        selected: whether each token was selected.
        candidates: whether each token may be selected; None if all may.
        weights: the weight of each token, 0 where not selected; None if tokens are not weighed.
    """

    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    selected: tuple[bool, ...]
    candidates: tuple[bool, ...] | None = None
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class RecordedPair:
    """One line of the record.

    Args:
        step: step at which the pair was optimized, from 1.
        row: row number in the training set, or None.
        prompt: the prompt as plain text.
        chosen: the chosen response.
        rejected: the rejected response.
    """

    step: int
    row: int | None
    prompt: str
    chosen: RecordedAnswer
    rejected: RecordedAnswer


def read_record(folder: Path) -> tuple[list[RecordedPair], int]:
    """Read a run's record, complete or truncated.

    Args:
        folder: the run's ``output_dir``.

    Returns:
        The pairs in order, and the number of lines that could not be read; no pairs if there is no record.

    Raises:
        OSError: If the file exists and cannot be read.
    """
    lines = record_lines(folder)
    pairs = [pair for _, pair in lines if pair is not None]
    return pairs, len(lines) - len(pairs)


def record_lines(folder: Path) -> list[tuple[str, RecordedPair | None]]:
    """Return the lines of a run's record, each with its pair, or None if the line cannot be read.

    Raises:
        OSError: If the file exists and cannot be read.
    """
    file = folder / RECORD_FILE
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    return [(line, _read_pair(line)) for line in lines if line]


def _read_pair(line: str) -> RecordedPair | None:
    try:
        values = json.loads(line)
        step, row, prompt = values["step"], values["row"], values["prompt"]
        if not _whole(step) or not (row is None or _whole(row)) or not isinstance(prompt, str):
            return None
        return RecordedPair(step, row, prompt, *(_read_answer(values[side]) for side in SIDES))
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError):
        return None


def _read_answer(values: dict[str, Any]) -> RecordedAnswer:
    tokens, scores, selected = values["tokens"], values["scores"], values["selected"]
    template, given = values.get("template", []), values.get("weights")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise TypeError(tokens)
    if len(scores) != len(tokens) or not all(map(_whole, [*selected, *template])):
        raise ValueError(scores)
    kept, candidates = [False] * len(tokens), [True] * len(tokens)
    for index in selected:
        kept[index] = True
    weights = [0.0] * len(tokens)
    if given is not None:
        for index, weight in zip(selected, given, strict=True):
            weights[index] = _finite(weight)
    for index in template:
        candidates[index] = False
    flags = tuple(candidates) if template else None
    numbers = tuple(map(_score, scores))
    return RecordedAnswer(tuple(tokens), numbers, tuple(kept), flags, None if given is None else tuple(weights))


def _score(value: object) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(value)
    return float(value)


def _finite(value: object) -> float:
    number = _score(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
