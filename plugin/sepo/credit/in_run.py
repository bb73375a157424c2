"""Scores of a run before training: against noise, and on rows with marked errors (``credit_data``)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from sepo.credit.data import LabelledPair
from sepo.credit.evaluate import evaluate
from sepo.credit.reading import mark
from sepo.credit.sets.registry import read_set
from sepo.errors import SepoError
from sepo.intervals import Estimate
from sepo.objectives import Method
from sepo.runs.log_writer import note_scores
from sepo.score_store.summary import SHARE
from sepo.scoring.chance import ADVICE, log_chance, scores_against_chance
from sepo.scoring.prepare import CREDIT_DATA
from sepo.text.chat_encoding import ReadResponse
from sepo.text.conversations import CONVERSATION
from sepo.training.reward_columns import REWARD_COLUMNS
from sepo.training.selection_columns import IGNORE_INDEX, SCORE_COLUMNS

logger = logging.getLogger(__name__)

MOST_ROWS = 1000
"""Number of rows of ``credit_data`` that are scored: of public sets evenly spaced ones, of others the first."""
_SAMPLES = 1000
_SEED = 0

ReadPairs = Callable[[Sequence[LabelledPair]], Sequence[ReadResponse]]
"""Function that tokenizes the rejected responses of pairs in the tokens and the template of the run's rows."""


@dataclass(frozen=True)
class MarkedRows:
    """Rows with marked errors, as a run scores them.

    Args:
        source: the value of ``credit_data``.
        pairs: the rows.
        reads: the tokens of their rejected responses.
        dataset: the tokenized rows, with their conversation. The chosen response of a row without one is the rejected
            one, as only rejected responses are measured.
    """

    source: str
    pairs: Sequence[LabelledPair]
    reads: Sequence[ReadResponse]
    dataset: Dataset


@dataclass(frozen=True)
class Credit:
    """Result on rows with marked errors.

    Args:
        source: the value of ``credit_data``.
        responses: number of measured responses.
        auroc: probability that a marked token scores below an unmarked one of its response, mean over responses, with
            its interval, as `sepo credit` computes it.
    """

    source: str
    responses: int
    auroc: Estimate

    @property
    def is_noise(self) -> bool:
        """Whether the interval is not above 0.5, the value of random scores."""
        return self.auroc.low is not None and self.auroc.low <= 0.5

    def text(self) -> str:
        """Return the numbers in words."""
        low, high = (float("nan") if end is None else end for end in (self.auroc.low, self.auroc.high))
        return (
            f"AUROC {self.auroc.value:.3f} ({low:.3f} to {high:.3f}) of finding the marked tokens of "
            f"{self.responses:,} rejected responses of {self.source}, 0.5 for noise"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        auroc = {"mean": self.auroc.value, "low": self.auroc.low, "high": self.auroc.high}
        return {"source": self.source, "responses": self.responses, "auroc": auroc, "noise": self.is_noise}


def check_credit_data(source: str | None) -> None:
    """Raise if the rows of ``credit_data`` cannot be used, before any model is loaded.

    Args:
        source: the value of the key, or None.

    Raises:
        SepoError: naming the key, the file and the row.
    """
    if source is not None:
        _read(source)


def _read(source: str) -> Sequence[LabelledPair]:
    try:
        return read_set(source).sample(MOST_ROWS).pairs
    except SepoError as error:
        raise SepoError(f"{CREDIT_DATA}: {error}") from error


def marked_rows(source: str, read: ReadPairs) -> MarkedRows:
    """Read and tokenize the rows of ``credit_data``.

    Args:
        source: the value of the key.
        read: tokenizes rejected responses.

    Raises:
        SepoError: A row cannot be used, or its spans cannot be placed on its tokens.
    """
    pairs = _read(source)
    try:
        reads = read(pairs)
        chosen = read([replace(pair, rejected=pair.chosen or pair.rejected, spans=()) for pair in pairs])
    except SepoError as error:
        raise SepoError(f"{CREDIT_DATA} {source}, {error}") from error
    columns: dict[str, list[Any]] = {}
    for side, responses in (("chosen", chosen), ("rejected", reads)):
        columns[f"{side}_input_ids"] = [list(each.input_ids) for each in responses]
        columns[f"{side}_labels"] = [_labels(each) for each in responses]
    columns[CONVERSATION] = [json.dumps(pair.conversation, ensure_ascii=False) for pair in pairs]
    return MarkedRows(source, pairs, reads, Dataset.from_dict(columns))


def _labels(read: ReadResponse) -> list[int]:
    return [IGNORE_INDEX] * read.response_start + list(read.input_ids[read.response_start :])


def measured(rows: MarkedRows, scored: Dataset, method: Method) -> Credit:
    """Measure how well scores find the marked tokens of rejected responses.

    Args:
        rows: the rows.
        scored: their data set with the columns of the run's scorer.
        method: the resolved method, by which the sign of the scores is known.

    Raises:
        SepoError: No response has both marked and unmarked tokens.
    """
    column = next(name for name in (SCORE_COLUMNS[1], REWARD_COLUMNS[1]) if name in scored.column_names)
    sign = -1.0 if column == SCORE_COLUMNS[1] and method.token_scorer.rejected_largest else 1.0
    scores = [sign * np.asarray(row, dtype=np.float64) for row in scored[column]]
    marked = [mark(*both, text_only=False) for both in zip(rows.pairs, rows.reads, strict=True)]
    try:
        found = evaluate(marked, {CREDIT_DATA: [scores]}, ratio=SHARE, samples=_SAMPLES, seed=_SEED)
    except SepoError as error:
        raise SepoError(f"{CREDIT_DATA} {rows.source}: {error}") from error
    return Credit(rows.source, found.responses, found.scorers[CREDIT_DATA]["auroc"])


def report_scores(
    datasets: Mapping[str, Any],
    method: Method,
    *,
    marked: MarkedRows | None = None,
    scored: Dataset | None = None,
    folder: Path | None = None,
) -> None:
    """Log how the scores of a run compare with noise and with marked errors, with a warning if they look like noise.

    Args:
        datasets: tokenized data sets by the host's roles, with the columns of the run's scores.
        method: the resolved method.
        marked: rows of ``credit_data``, or None.
        scored: their data set with the scores.
        folder: the run's ``output_dir``, to whose log the numbers are added; None to add them to none.

    Raises:
        SepoError: See ``measured``.
    """
    found = scores_against_chance(datasets, method)
    log_chance(found)
    credit = None
    if marked is not None and scored is not None:
        credit = measured(marked, scored, method)
        if credit.is_noise:
            logger.warning("the scores do not find the errors of %s: %s; %s.", CREDIT_DATA, credit.text(), ADVICE)
        else:
            logger.info("the scores of %s: %s.", CREDIT_DATA, credit.text())
    if folder is not None and (found or credit is not None):
        values = {name: chance.as_dict() for name, chance in found.items()}
        note_scores(folder, values, None if credit is None else credit.as_dict())
