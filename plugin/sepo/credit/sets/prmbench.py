"""PRMBench: solutions of mathematical problems in steps, and the same with errors put in; wrong steps are marked.

Format: hitsmy/PRMBench_Preview (``prmtest_classified.jsonl``), documented in docs/data_format.md of
github.com/ssmisya/PRMBench; Song et al. 2025 (arXiv 2501.03124). One JSON object per line with ``original_process`` and
``modified_process`` (steps), ``error_steps`` (numbers of the wrong steps of ``modified_process``, from 1),
``classification`` (type of error), ``modified_question`` and ``question``. Rejected is the modified process, chosen the
original one, both after ``modified_question``, which the benchmark evaluates (it lacks a condition if the
classification is ``missing_condition``).

In the published files, 1 to 4 % of the rows name steps beyond the end, some steps are blank, and rows of
``multi_solutions`` have no wrong step; such rows are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sepo.credit.data import ErrorSpan
from sepo.credit.sets.rows import Reading, joined, json_rows, short, text_of, texts_of, value_of, whole
from sepo.errors import SepoError

EXPECTED = "prmtest_classified.jsonl of PRMBench: one object per line with modified_process and error_steps"


def read(path: Path, reading: Reading) -> None:
    """Read one file."""
    reading.each(json_rows(path, expected=EXPECTED), lambda row, where: _use(row, where, reading))


def _use(row: Any, where: str, reading: Reading) -> None:
    steps, kind = texts_of(row, "modified_process", where), text_of(row, "classification", where)
    original = texts_of(row, "original_process", where)
    wrong = value_of(row, "error_steps", where, expected="a list of step numbers, from 1")
    if not isinstance(wrong, list) or not all(whole(number) for number in wrong):
        raise SepoError(f"{where}: error_steps is {short(wrong)}, expected a list of step numbers, from 1.")
    question = text_of(row, "modified_question" if "modified_question" in row else "question", where)
    if not wrong:
        reading.leave_out("no step is marked", where)
        return
    if not all(1 <= number <= len(steps) for number in wrong):
        reading.leave_out("error_steps names a step that modified_process does not have", where)
        return
    if not all(steps[number - 1].strip() for number in wrong):
        reading.leave_out("a wrong step is blank", where)
        return
    rejected, places = joined(steps)
    chosen, _ = joined(original)
    marked = [places[number - 1] for number in sorted(set(wrong))]
    reading.add(
        messages=({"role": "user", "content": question},),
        chosen="" if chosen == rejected or not chosen.strip() else chosen,
        rejected=rejected,
        spans=tuple(ErrorSpan(start, end, kind) for start, end in marked),
        steps=places,
        language="en",
    )
