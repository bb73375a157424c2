"""QA feedback: responses of a model with spans that annotators marked, and the response that they corrected.

Format: github.com/allenai/FineGrainedRLHF, tasks/qa_feedback/data/README.md; Wu et al. 2023 (arXiv 2306.01693). A JSON
list of objects with ``question``, ``prediction 1``, and ``feedback`` with ``errors`` (``start``, ``end`` in characters
of ``prediction 1``, ``error type``) and ``corrected-prediction``. Rejected is ``prediction 1``, chosen the correction.
The prompt is the question without the passages that the model was given. A file of pairs with
``rejected_error_spans`` (see ``sepo.credit.data``) that was made from this data is read too.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sepo.credit.data import SPANS, ErrorSpan, checked_pairs, read_rows
from sepo.credit.sets.rows import Reading, json_rows, objects_of, range_of, short, text_of, value_of
from sepo.errors import SepoError

EXPECTED = "dev_feedback.json or train_feedback.json of QA feedback: a list of objects with question and feedback"


def read(path: Path, reading: Reading) -> None:
    """Read one file."""
    rows = list(json_rows(path, expected=EXPECTED))
    if rows and isinstance(rows[0][1], dict) and SPANS in rows[0][1]:
        pairs = checked_pairs(read_rows(path), name=str(path))
        reading.rows += len(pairs)
        reading.pairs += [replace(pair, language=pair.language or "en") for pair in pairs]
        return
    reading.each(iter(rows), lambda row, where: _use(row, where, reading))


def _use(row: Any, where: str, reading: Reading) -> None:
    question, rejected = text_of(row, "question", where), text_of(row, "prediction 1", where)
    feedback = value_of(row, "feedback", where, expected="an object with errors and corrected-prediction")
    chosen = value_of(feedback, "corrected-prediction", f"{where}: feedback", expected="a string")
    if not isinstance(chosen, str):
        raise SepoError(f"{where}: corrected-prediction is {short(chosen)}, expected a string.")
    spans = []
    for place, error in enumerate(objects_of(feedback, "errors", f"{where}: feedback")):
        at = f"{where}: errors[{place}]"
        spans.append(ErrorSpan(*range_of(error, rejected, at, of="prediction 1"), text_of(error, "error type", at)))
    if not spans:
        reading.leave_out("no error is marked", where)
        return
    reading.add(
        messages=({"role": "user", "content": question},),
        chosen=chosen if chosen.strip() and chosen != rejected else "",
        rejected=rejected,
        spans=tuple(spans),
        language="en",
    )
