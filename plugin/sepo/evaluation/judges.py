"""Questions and answers in the file formats of AlpacaEval 2, Arena-Hard and MT-Bench, whose judges go on from there.

Sources of the formats, as read in these projects' own code:

- AlpacaEval 2, tatsu-lab/alpaca_eval, README ("Evaluating a model") and ``evaluate`` in src/alpaca_eval/main.py:
  ``--model_outputs`` is a JSON list of {instruction, output}, with ``generator`` (the model's name on the leaderboard)
  and ``dataset`` (of the evaluation set's row); rows in the order of the evaluation set.
- Arena-Hard, lmarena/arena-hard-auto, src/arenahard/gen_answer.py and gen_judgment.py (the code of April 2025 and
  later, for the sets v0.1 and v2.0): questions {uid, category, prompt}; data/BENCH/model_answer/MODEL.jsonl with {uid,
  ans_id, model, messages, tstamp}, where the last message's content is {"answer": text}. ``metadata`` (lengths by
  OpenAI's tokenizer, Markdown counts) is left out: only style control reads it, and their utils/add_markdown_info.py
  adds it.
- Arena-Hard v0.1 as it was first released (2024), the same project's gen_answer.py and show_result.py of then:
  questions {question_id, category, turns: [{content}]}; answers {question_id, answer_id, model_id, choices: [{index,
  turns: [{content, token_len}]}], tstamp}. show_result.py shows the mean ``token_len``: here in the policy's tokens.
- MT-Bench, lm-sys/FastChat, fastchat/llm_judge/gen_model_answer.py and common.py: questions {question_id, category,
  turns: [text, ...]}; data/mt_bench/model_answer/MODEL.jsonl with {question_id, answer_id, model_id, choices: [{index,
  turns: [text, ...]}], tstamp}. Its own generation samples at a temperature by category (0.7 for writing, 0 for maths).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sepo.errors import SepoError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """One question of a benchmark.

    Args:
        id: what its answers are found by.
        turns: what the user says, turn by turn; the second one after the first answer.
        row: the question as its file has it.
    """

    id: str | int
    turns: tuple[str, ...]
    row: Row


@dataclass(frozen=True)
class Answer:
    """What a policy answered.

    Args:
        turns: the text of each turn.
        tokens: how many tokens each has.
    """

    turns: tuple[str, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Judge:
    """A benchmark's formats.

    Args:
        name: of the benchmark, and of its folder among the results.
        expected: a question's fields in words.
        turns: the user's turns of a question's row; None where the row is not one of its questions.
        key: the field that names a question; None where its text does.
        answered: a row of the file of answers, from question, answer, the model's name and the time in seconds.
        asked: a question's row from its number, its text and its data set's name, for prompts that come from elsewhere;
            None where these are written in another format of the same benchmark.
        file: the file of answers below the benchmark's folder, from the model's name.
    """

    name: str
    expected: str
    turns: Callable[[Row], Sequence[Any] | None]
    key: str | None
    answered: Callable[[Question, Answer, str, float], dict[str, Any]]
    asked: Callable[[int, str, str], dict[str, Any]] | None
    file: Callable[[str], str]


def _answer_id(question: Question, model: str) -> str:
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{model} {question.id}").hex


def _alpaca_turns(row: Row) -> Sequence[Any] | None:
    if "instruction" not in row:
        return None
    more = row.get("input")
    return [f"{row['instruction']}\n\n{more}" if more else row["instruction"]]


def _alpaca_answer(question: Question, answer: Answer, model: str, time: float) -> dict[str, Any]:
    kept = {name: question.row[name] for name in ("input", "dataset") if name in question.row}
    return {"instruction": question.row["instruction"], **kept, "output": answer.turns[0].strip(), "generator": model}


def _arena_answer(question: Question, answer: Answer, model: str, time: float) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": question.turns[0]},
        {"role": "assistant", "content": {"answer": answer.turns[0].strip()}},
    ]
    ans_id = _answer_id(question, model)
    return {"uid": question.id, "ans_id": ans_id, "model": model, "messages": messages, "tstamp": time}


def _old_arena_turns(row: Row) -> Sequence[Any] | None:
    turns = row.get("turns")
    if "question_id" not in row or not isinstance(turns, list) or not turns:
        return None
    return [turn.get("content") for turn in turns] if all(isinstance(turn, dict) for turn in turns) else None


def _mt_turns(row: Row) -> Sequence[Any] | None:
    turns = row.get("turns")
    if "question_id" not in row or not isinstance(turns, list) or any(isinstance(turn, dict) for turn in turns):
        return None
    return turns


def _choices(question: Question, model: str, turns: list[Any], time: float) -> dict[str, Any]:
    return {
        "question_id": question.id,
        "answer_id": _answer_id(question, model),
        "model_id": model,
        "choices": [{"index": 0, "turns": turns}],
        "tstamp": time,
    }


def _old_arena_answer(question: Question, answer: Answer, model: str, time: float) -> dict[str, Any]:
    said = zip(answer.turns, answer.tokens, strict=True)
    turns = [{"content": text.strip(), "token_len": tokens} for text, tokens in said]
    return _choices(question, model, turns, time)


JUDGES: Mapping[str, Judge] = {
    judge.name: judge
    for judge in (
        Judge(
            "alpaca_eval",
            "AlpacaEval: a JSON list of {instruction, ...}",
            _alpaca_turns,
            None,
            _alpaca_answer,
            lambda number, text, name: {"instruction": text, "dataset": name},
            lambda model: f"{model}.json",
        ),
        Judge(
            "arena_hard",
            "Arena-Hard: JSON lines of {uid, category, prompt}",
            lambda row: [row["prompt"]] if {"uid", "prompt"} <= set(row) else None,
            "uid",
            _arena_answer,
            lambda number, text, name: {"uid": str(number), "category": name, "prompt": text},
            lambda model: f"model_answer/{model}.jsonl",
        ),
        Judge(
            "arena_hard_2024",
            "Arena-Hard of 2024: JSON lines of {question_id, category, turns: [{content}]}",
            _old_arena_turns,
            "question_id",
            _old_arena_answer,
            None,
            lambda model: f"model_answer/{model}.jsonl",
        ),
        Judge(
            "mt_bench",
            "MT-Bench: JSON lines of {question_id, category, turns: [text, ...]}",
            _mt_turns,
            "question_id",
            lambda question, answer, model, time: _choices(
                question, model, [text.strip() for text in answer.turns], time
            ),
            lambda number, text, name: {"question_id": number, "category": name, "turns": [text]},
            lambda model: f"model_answer/{model}.jsonl",
        ),
    )
}


def read_questions(path: Path) -> tuple[Judge, list[Question]]:
    """Read a benchmark's questions; which benchmark it is, their fields tell.

    Args:
        path: JSON (a list) or JSON lines.

    Returns:
        The benchmark and its questions, in the order of the file.

    Raises:
        SepoError: there is no such file, or it holds no questions of a benchmark that is known here.
    """
    rows = _rows(path)
    judge = next((judge for judge in JUDGES.values() if judge.turns(rows[0]) is not None), None)
    if judge is None:
        expected = "; ".join(judge.expected for judge in JUDGES.values())
        raise SepoError(
            f"--questions {path}: its first row has the fields {', '.join(rows[0]) or '(none)'}. Expected: {expected}."
        )
    questions, seen = [], set()
    for number, row in enumerate(rows, start=1):
        question = _question(judge, row, f"--questions {path}: row {number}", number)
        if question.id in seen:
            raise SepoError(
                f"--questions {path}: {judge.key} {question.id!r} is there twice; each question needs its own."
            )
        seen.add(question.id)
        questions.append(question)
    return judge, questions


def _question(judge: Judge, row: Row, where: str, number: int) -> Question:
    turns = judge.turns(row)
    if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise SepoError(f"{where} is no question. Expected {judge.expected}, with text in every turn.")
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise SepoError(
            f"{where} has half a character (a lone surrogate), which no text has; mend or leave out the row."
        ) from None
    name = number if judge.key is None else row[judge.key]
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise SepoError(f"{where} has {name!r} as {judge.key}; a text or a whole number is expected.")
    return Question(name, tuple(turns), row)


def _rows(path: Path) -> list[Row]:
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SepoError(f"--questions {path}: there is no such file (from {Path.cwd()}).") from None
    except (OSError, UnicodeError) as error:
        raise SepoError(f"--questions {path} cannot be read: {error}.") from error
    try:
        whole = text.lstrip().startswith("[")
        rows = json.loads(text) if whole else [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise SepoError(f"--questions {path} is neither a JSON list nor JSON lines: {error}.") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise SepoError(
            f"--questions {path} holds {'rows that are no objects' if rows else 'no rows'}; a list of them is expected."
        )
    return list(rows)


def write_answers(
    judge: Judge,
    questions: Sequence[Question],
    answers: Sequence[Answer],
    *,
    model: str,
    folder: Path,
    time: float,
) -> Path:
    """Write a policy's answers as a benchmark reads them.

    Args:
        judge: the benchmark.
        questions: its questions.
        answers: theirs.
        model: the policy's name.
        folder: the benchmark's among the results; made if it is not there.
        time: when, in seconds since 1970.

    Returns:
        The file.
    """
    file = folder / judge.file(model)
    rows = [judge.answered(question, answer, model, time) for question, answer in zip(questions, answers, strict=True)]
    return _written(file, rows)


def own_question(judge: Judge, number: int, text: str, *, dataset: str) -> Question:
    """A question that a benchmark does not have, in its form.

    Args:
        judge: one that has ``asked``.
        number: of the prompt, by which its answer is found.
        text: what the user says.
        dataset: where the prompt is from.
    """
    assert judge.asked is not None
    row = judge.asked(number, text, dataset)
    return Question(number if judge.key is None else row[judge.key], (text,), row)


def write_questions(questions: Sequence[Question], *, folder: Path) -> Path:
    """Write questions of ``own_question`` where their benchmark's judge looks for its own."""
    return _written(folder / "question.jsonl", [question.row for question in questions])


def _written(file: Path, rows: Sequence[Row]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = file.suffix == ".jsonl"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) if lines else _indented(rows)
    file.write_text(text, encoding="utf-8")
    return file


def _indented(rows: Sequence[Row]) -> str:
    return json.dumps(list(rows), ensure_ascii=False, indent=1) + "\n"
