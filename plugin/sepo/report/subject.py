"""What a report is about: a run or a store of token scores, read from disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

NO_TEXT = " \u25aa"
"""Stands for each token of an answer whose text is not known."""


@dataclass(frozen=True)
class Side:
    """One answer of a pair.

    Args:
        tokens: the tokens' text, end of turn included; together they spell the answer. Of the tokens that make up one
            character the first has it and the others are empty; ``NO_TEXT`` each where the texts are not known.
        scores: float32, [T]: what they were selected by (nats for an oracle); NaN where a token has none.
        selected: bool, [T]: which of them train the policy.
    """

    tokens: tuple[str, ...]
    scores: np.ndarray
    selected: np.ndarray


@dataclass(frozen=True)
class Pair:
    """One row of the data set.

    Args:
        row: its number in the data set, as it is trained on (rows without an answer left out); -1 where not known.
        prompt: what the answers answer, as plain text; the empty string where it is not known.
        chosen: the better answer.
        rejected: the other one.
        step: of training, where the pair was recorded there (a live scorer's scores move with the policy); None where
            the scores are a store's. A row that was recorded twice is two pairs.
    """

    row: int
    prompt: str
    chosen: Side
    rejected: Side
    step: int | None = None


@dataclass(frozen=True)
class Spread:
    """How the scores of one side are distributed over all rows, not only the shown ones.

    Args:
        tokens: how many.
        edges: of the histogram's bins, [N + 1]; of one width, and the same for both sides.
        counts: tokens in each bin, [N]; the first and the last have all that lie beyond them too.
        mean: of all scores.
        std: of all scores.
        accumulated: what part of a response's sum of scores its best tokens carry (SePO's Figure 1): at the shares
            0, 0.05, ..., 1 of its tokens (highest first for chosen, lowest first for rejected), the mean over rows
            of the sum so far, [21], in the scores' unit; a part of a token counts with its part of the score.
    """

    tokens: int
    edges: np.ndarray
    counts: np.ndarray
    mean: float
    std: float
    accumulated: np.ndarray


SHARES = np.linspace(0.0, 1.0, 21)
"""Of a response's tokens, at which ``Spread.accumulated`` is given."""


@dataclass(frozen=True)
class Subject:
    """A run or a store.

    Args:
        name: how the user told it apart from others.
        path: the folder that was read.
        kind: ``run`` or ``store``.
        pairs: a sample of the rows, spread over the data set; all of them where they are few.
        rows: how many the data set has; None where unknown.
        spreads: by side, ``chosen`` and ``rejected``; empty where nothing is scored.
        scored_by: the token scorer in words (``oracle: NAME over NAME``), or None.
        settings: what the run was asked for (``sepo_settings.json``, or a store's manifest), as plain JSON values.
        recipe: the recipe's keys and values, where the run wrote it.
        log: logged numbers in their order, each with ``step``; metrics as the trainer names them.
        versions: of the packages that ran it, by name.
        missing: what could not be read, one sentence each that says what it is and what that means.
    """

    name: str
    path: Path
    kind: str
    pairs: Sequence[Pair] = ()
    rows: int | None = None
    spreads: Mapping[str, Spread] = field(default_factory=dict)
    scored_by: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    log: Sequence[Mapping[str, Any]] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    missing: Sequence[str] = ()
