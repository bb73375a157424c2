"""Prompts from JSON files: rows with a prompt or messages, and the questions of benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sepo.errors import SepoError
from sepo.evaluation.benchmarks import BENCHMARKS, Question, json_rows, read_questions
from sepo.evaluation.prompts import Prompt
from sepo.judges.judge import is_absent
from sepo.text.messages import MessageReader, UnreadableRow, check_turns, tools_text
from sepo.text.revision_prompts import quoted_conversation

_READER = MessageReader()


def read_prompts(path: Path, *, option: str, expected_column: str = "") -> list[Prompt]:
    """Read prompts, one for each row of a file.

    A row has ``messages`` (``role`` and ``content``; an assistant turn at the end is left out) or ``prompt`` (the
    user's turn), and possibly ``system`` and ``tools``; or it is a question of a benchmark, of which the first turn is
    the prompt.

    Args:
        path: a JSON file (a list) or JSON lines.
        option: the key that names the file, for messages.
        expected_column: field with the expected answers; empty for none.

    Returns:
        The prompts, in the order of the file, numbered from 0.

    Raises:
        SepoError: the file cannot be read, or a row is no prompt.
    """
    rows = json_rows(path, option=option)
    if "messages" in rows[0] or ("prompt" in rows[0] and "uid" not in rows[0]):
        read = [_prompt(row, f"{option} {path}: row {number}") for number, row in enumerate(rows, start=1)]
    elif any(benchmark.turns(rows[0]) is not None for benchmark in BENCHMARKS.values()):
        _, questions = read_questions(path, option=option)
        read = [(({"role": "user", "content": question.turns[0]},), "", "") for question in questions]
    else:
        questions_of = "; ".join(benchmark.expected for benchmark in BENCHMARKS.values())
        raise SepoError(
            f"{option} {path} has no prompts: the first row has the fields {', '.join(rows[0]) or '(none)'}, expected "
            f"prompt or messages, or the questions of a benchmark ({questions_of})."
        )
    if expected_column and not any(expected_column in row for row in rows):
        raise SepoError(
            f"{option} {path}: no row has the field {expected_column} (expected_column), expected the answers there; "
            f"the first row has {', '.join(rows[0])}."
        )
    prompts = []
    for index, (row, (messages, system, tools)) in enumerate(zip(rows, read, strict=True)):
        expected = row.get(expected_column) if expected_column else None
        question = Question(index, (quoted_conversation(messages, system=system, tools=tools),), {})
        prompts.append(Prompt(question, messages, system, tools, None if is_absent(expected) else expected))
    return prompts


def _prompt(row: Mapping[str, Any], where: str) -> tuple[tuple[Mapping[str, str], ...], str, str]:
    """Return turns, system prompt and tools of a row with ``messages`` or ``prompt``."""
    try:
        given = row.get("messages", row.get("prompt"))
        system, turns = _READER.conversation(given, role="user", what="the prompt")
        if turns and turns[-1]["role"] in ("assistant", "function"):
            turns = turns[:-1]
        check_turns(turns)
        if not turns or not turns[-1]["content"].strip():
            raise UnreadableRow("it has no text of a user")
        own = row.get("system") or ""
        if not isinstance(own, str):
            raise UnreadableRow("system is not text")
        return tuple(turns), own if system is None else system, tools_text(row.get("tools"))
    except UnreadableRow as error:
        raise SepoError(
            f"{where} is no prompt: {error}; expected prompt, the text of a user, or messages that end with a turn of "
            "the user."
        ) from None
