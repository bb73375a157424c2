"""BIG-Bench Mistake: chains of thought of a model for five tasks; the first step with a logical mistake is marked.

Format: README.md of github.com/WHGTyen/BIG-Bench-Mistake; Tyen et al. 2023 (arXiv 2311.08516). One file per task, one
JSON object per line with ``input``, ``steps``, ``answer``, ``target`` and ``mistake_index`` (from 0; null if no step is
wrong). Rejected is a trace with a mistake, whole; its steps after the first mistake are not labelled. A trace without
a mistake for the same input is chosen; the published files have one trace per input, so their rows are rejected-only.
The type of error is the task, from the name of the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sepo.credit.data import ErrorSpan
from sepo.credit.sets.rows import Reading, joined, json_rows, short, text_of, texts_of, value_of, whole
from sepo.errors import SepoError

EXPECTED = "TASK.jsonl of BIG-Bench Mistake: one object per line with input, steps and mistake_index"


def read(path: Path, reading: Reading) -> None:
    """Read one file."""
    rows = list(json_rows(path, expected=EXPECTED))
    right: dict[str, str] = {}
    for _, row in rows:
        if isinstance(row, dict) and row.get("mistake_index", 0) is None and isinstance(row.get("input"), str):
            steps = row.get("steps")
            if isinstance(steps, list) and all(isinstance(step, str) for step in steps) and "".join(steps).strip():
                right.setdefault(row["input"], joined(steps)[0])
    reading.each(iter(rows), lambda row, where: _use(row, where, reading, path.stem, right))


def _use(row: Any, where: str, reading: Reading, task: str, right: dict[str, str]) -> None:
    question, steps = text_of(row, "input", where), texts_of(row, "steps", where)
    wrong = value_of(row, "mistake_index", where, expected="the index of the first wrong step, from 0, or null")
    if wrong is not None and not (whole(wrong) and 0 <= wrong < len(steps)):
        raise SepoError(
            f"{where}: mistake_index is {short(wrong)}, expected null or the index of one of {len(steps)} steps, "
            "from 0."
        )
    if wrong is None:
        reading.leave_out("no mistake", where)
        return
    if not steps[wrong].strip():
        reading.leave_out("the wrong step is blank", where)
        return
    rejected, places = joined(steps)
    start, end = places[wrong]
    reading.add(
        messages=({"role": "user", "content": question},),
        chosen=right.get(question, ""),
        rejected=rejected,
        spans=(ErrorSpan(start, end, task),),
        steps=places,
        unlabelled=((end, len(rejected)),) if end < len(rejected) else (),
        language="en",
    )
