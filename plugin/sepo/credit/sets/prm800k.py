"""PRM800K: solutions of MATH problems in steps that labelers rated -1, 0 or +1.

Format: README.md of github.com/openai/prm800k (``prm800k/data/phase*_*.jsonl``, in Git LFS); Lightman et al. 2023
(arXiv 2305.20050). One JSON object per line with ``question`` (``problem``, ``pre_generated_steps``) and ``label``,
whose ``steps`` have ``completions`` (``text``, ``rating``) and ``chosen_completion`` (an index, or null for
``human_completion``).

One pair per line, at the first step with a completion rated -1: rejected is the solution so far with that completion,
chosen the same with a completion rated +1 (else with one rated 0, or the human completion). If the wrong completion is
that of the pre-generated solution, the rest of that follows it, not labelled: without it the wrong step would always
be the last. Lines without a completion rated -1, and lines that repeat a rejected response (quality control: the same
solution, several labelers), are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sepo.credit.data import ErrorSpan
from sepo.credit.sets.rows import Reading, joined, json_rows, objects_of, short, text_of, value_of, whole
from sepo.errors import SepoError

EXPECTED = "phase1_test.jsonl, phase2_test.jsonl, ... of PRM800K: one object per line with question and label"
TYPE = "wrong step"


def read(path: Path, reading: Reading) -> None:
    """Read one file."""
    seen: set[tuple[str, str]] = {(pair.messages[0]["content"], pair.rejected) for pair in reading.pairs}
    reading.each(json_rows(path, expected=EXPECTED), lambda row, where: _use(row, where, reading, seen))


def _use(row: Any, where: str, reading: Reading, seen: set[tuple[str, str]]) -> None:
    question = value_of(row, "question", where, expected="an object with problem")
    problem = text_of(question, "problem", f"{where}: question")
    label = value_of(row, "label", where, expected="an object with steps")
    before: list[str] = []
    for number, step in enumerate(objects_of(label, "steps", f"{where}: label")):
        at = f"{where}: label.steps[{number}]"
        completions = _completions(step, at)
        wrong = next((text for text, rating in completions if rating == -1), None)
        if wrong is not None:
            right = _right(completions, step)
            _add(reading, where, problem, before, wrong, right, _following(question, before, wrong), seen)
            return
        taken = _taken(step, completions, at)
        if taken is None:
            break
        before.append(taken)
    reading.leave_out("no step is rated -1", where)


def _completions(step: Mapping[str, Any], at: str) -> list[tuple[str, int | None]]:
    found = []
    for place, each in enumerate(objects_of(step, "completions", at) if step.get("completions") is not None else []):
        rating = value_of(each, "rating", f"{at}.completions[{place}]", expected="-1, 0, 1 or null")
        if rating is not None and rating not in (-1, 0, 1):
            raise SepoError(f"{at}.completions[{place}]: rating is {short(rating)}, expected -1, 0, 1 or null.")
        found.append((text_of(each, "text", f"{at}.completions[{place}]"), rating))
    return found


def _human(step: Mapping[str, Any]) -> str | None:
    """Return the step that the labeler wrote: a string as documented, or an object with ``text`` as published."""
    human = step.get("human_completion")
    text = human.get("text") if isinstance(human, Mapping) else human
    return text if isinstance(text, str) and text.strip() else None


def _right(completions: Sequence[tuple[str, int | None]], step: Mapping[str, Any]) -> str | None:
    best = [text for wanted in (1, 0) for text, rating in completions if rating == wanted]
    return best[0] if best else _human(step)


def _taken(step: Mapping[str, Any], completions: Sequence[tuple[str, int | None]], at: str) -> str | None:
    """Return the text with which the solution continues; None if the labeler gave up."""
    index = step.get("chosen_completion")
    if index is None:
        return _human(step)
    if not whole(index) or not 0 <= index < len(completions):
        raise SepoError(
            f"{at}: chosen_completion is {short(index)}, expected null or the index of one of {len(completions)} "
            "completions."
        )
    return completions[index][0]


def _following(question: Mapping[str, Any], before: Sequence[str], wrong: str) -> list[str]:
    generated = question.get("pre_generated_steps") or []
    count = len(before) + 1
    return list(generated[count:]) if list(generated[:count]) == [*before, wrong] else []


def _add(
    reading: Reading,
    where: str,
    problem: str,
    before: Sequence[str],
    wrong: str,
    right: str | None,
    following: Sequence[str],
    seen: set[tuple[str, str]],
) -> None:
    rejected, places = joined([*before, wrong, *following])
    if (problem, rejected) in seen:
        reading.leave_out("repeats a response", where)
        return
    seen.add((problem, rejected))
    start, end = places[len(before)]
    reading.add(
        messages=({"role": "user", "content": problem},),
        chosen="" if right is None else joined([*before, right])[0],
        rejected=rejected,
        spans=(ErrorSpan(start, end, TYPE),),
        steps=places,
        unlabelled=((end, len(rejected)),) if end < len(rejected) else (),
        language="en",
    )
