"""The subject of a report: a run or a store of token scores, read from disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sepo.score_store.chance import Chance

NO_TEXT = " \u25aa"
"""Placeholder for each token of a response with unknown text."""


@dataclass(frozen=True)
class Side:
    """One response of a pair.

    Args:
        tokens: texts of the tokens, end of turn included, which concatenate to the response. If several tokens form one
            character, the first has it and the others are empty; ``NO_TEXT`` each if the texts are unknown.
        scores: float32, [T]: scores of the tokens (nats for an oracle); NaN for tokens without a score.
        selected: bool, [T], True for tokens that train the policy.
        candidates: bool, [T], False for tokens that are not selected because the chat template writes them; None if
            every token may be selected.
        weights: float64, [T], the weight of each token in the loss, 0 for tokens that are not selected; None if the
            selected tokens are not weighed.
    """

    tokens: tuple[str, ...]
    scores: np.ndarray
    selected: np.ndarray
    candidates: np.ndarray | None = None
    weights: np.ndarray | None = None

    @property
    def counted(self) -> int:
        """Number of tokens that may be selected."""
        return len(self.tokens) if self.candidates is None else int(self.candidates.sum())

    @property
    def effective(self) -> float | None:
        """Effective number of tokens, (sum w)^2 / sum w^2 of the weights w; None if tokens are not weighed.

        It is the number of selected tokens if their weights are equal, and smaller the more they differ.
        """
        if self.weights is None:
            return None
        squares = float(np.square(self.weights).sum())
        return float(self.weights.sum()) ** 2 / squares if squares > 0 else 0.0


@dataclass(frozen=True)
class Pair:
    """One row of the data set.

    Args:
        row: index of the row in the training data (without rows with an empty response); -1 if unknown.
        prompt: the prompt as plain text; the empty string if unknown.
        chosen: the chosen response.
        rejected: the rejected response.
        step: training step at which the pair was recorded (scores of a live scorer change with the policy); None if
            the scores are from a store. A row that was recorded twice is two pairs.
    """

    row: int
    prompt: str
    chosen: Side
    rejected: Side
    step: int | None = None


@dataclass(frozen=True)
class Spread:
    """Distribution of the scores of one side over all rows, not only the shown ones.

    Args:
        tokens: number of tokens.
        edges: edges of the histogram's bins, [N + 1]; equal widths, and the same for both sides.
        counts: number of tokens in each bin, [N]; the first and the last include all scores beyond them.
        mean: mean of all scores.
        std: standard deviation of all scores.
        accumulated: accumulation of a response's scores over its best tokens (SePO's Figure 1): at the shares 0, 0.05,
            ..., 1 of its tokens (chosen: highest first; rejected: the end that is selected first), the mean over rows
            of the cumulative sum, [21], in the unit of the scores; a fraction of a token counts with that fraction of
            its score.
    """

    tokens: int
    edges: np.ndarray
    counts: np.ndarray
    mean: float
    std: float
    accumulated: np.ndarray


SHARES = np.linspace(0.0, 1.0, 21)
"""Shares of a response's tokens at which ``Spread.accumulated`` is given."""


@dataclass(frozen=True)
class Subject:
    """The data of a run or a store.

    Args:
        name: name of the subject.
        path: the directory that was read.
        kind: ``run`` or ``store``.
        pairs: a sample of the rows, spread over the data set; all rows if there are few.
        rows: number of rows of the data set; None if unknown.
        spreads: score distributions by side, ``chosen`` and ``rejected``; empty without scores.
        scored_by: the token scorer in words (``oracle: NAME over NAME``), or None.
        settings: settings of the run (``sepo_settings.json``, or a store's manifest), as plain JSON values.
        recipe: keys and values of the recipe, if the run recorded it.
        chance: comparison of the training rows' scores with noise, or None.
        credit: result on the rows of ``credit_data`` (``Credit.as_dict``), as the run logged it, or None.
        warnings: warnings of the training, as the run logged them, each with its step.
        log: logged metrics in their order, each entry with ``step``; named as by the trainer.
        versions: versions of the packages that ran it, by name.
        missing: one sentence for each part that could not be read, with its consequence.
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
    chance: Chance | None = None
    credit: Mapping[str, Any] | None = None
    warnings: Sequence[str] = ()
    log: Sequence[Mapping[str, Any]] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    missing: Sequence[str] = ()
