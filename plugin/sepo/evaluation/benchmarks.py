"""Questions and answers in the file formats of AlpacaEval 2, Arena-Hard and MT-Bench, for their judges.

Sources of the formats, as read in the code of these projects:

- AlpacaEval 2, tatsu-lab/alpaca_eval, README ("Evaluating a model") and ``evaluate`` in src/alpaca_eval/main.py:
  ``--model_outputs`` is a JSON list of {instruction, output}, with ``generator`` (the model's name on the leaderboard)
  and ``dataset`` (of the evaluation set's row); rows in the order of the evaluation set.
- Arena-Hard, lmarena/arena-hard-auto, src/arenahard/gen_answer.py and gen_judgment.py (the code of April 2025 and
  later, for the sets v0.1 and v2.0): questions {uid, category, prompt}; data/BENCH/model_answer/MODEL.jsonl with {uid,
  ans_id, model, messages, tstamp}; the content of the last message is {"answer": text}. ``metadata`` (lengths by
  OpenAI's tokenizer, Markdown counts) is omitted: only style control reads it, and their utils/add_markdown_info.py
  adds it.
- Arena-Hard v0.1 as first released (2024), gen_answer.py and show_result.py of the same project at that time:
  questions {question_id, category, turns: [{content}]}; answers {question_id, answer_id, model_id, choices: [{index,
  turns: [{content, token_len}]}], tstamp}. show_result.py prints the mean ``token_len``: here in the policy's tokens.
- MT-Bench, lm-sys/FastChat, fastchat/llm_judge/gen_model_answer.py and common.py: questions {question_id, category,
  turns: [text, ...]}; data/mt_bench/model_answer/MODEL.jsonl with {question_id, answer_id, model_id, choices: [{index,
  turns: [text, ...]}], tstamp}. Its own generation uses a temperature by category (0.7 for writing, 0 for math).
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
        id: identifier of the question in answers.
        turns: the user's turns; the second one follows the first answer.
        row: the row of the question in its file.
    """

    id: str | int
    turns: tuple[str, ...]
    row: Row


@dataclass(frozen=True)
class Answer:
    """The answer of a policy to a question.

    Args:
        turns: the text of each turn.
        tokens: the number of tokens of each turn.
    """

    turns: tuple[str, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Benchmark:
    """File formats of a benchmark.

    Args:
        name: name of the benchmark and of its directory among the results.
        expected: description of a question's fields for error messages.
        turns: returns the user's turns of a question's row; None if the row is not one of its questions.
        key: the field that identifies a question; None if its text does.
        answer_row: returns a row of the file of answers, from question, answer, model name and time in seconds.
        question_row: returns a question's row from its number, text and data set name, for prompts from other sources;
            None if these are written in another format of the same benchmark.
        file: returns the file of answers, relative to the benchmark's directory, from the model name.
    """

    name: str
    expected: str
    turns: Callable[[Row], Sequence[Any] | None]
    key: str | None
    answer_row: Callable[[Question, Answer, str, float], dict[str, Any]]
    question_row: Callable[[int, str, str], dict[str, Any]] | None
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
    texts = zip(answer.turns, answer.tokens, strict=True)
    turns = [{"content": text.strip(), "token_len": tokens} for text, tokens in texts]
    return _choices(question, model, turns, time)


BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "alpaca_eval",
            "AlpacaEval: a JSON list of {instruction, ...}",
            _alpaca_turns,
            None,
            _alpaca_answer,
            lambda number, text, name: {"instruction": text, "dataset": name},
            lambda model: f"{model}.json",
        ),
        Benchmark(
            "arena_hard",
            "Arena-Hard: JSON lines of {uid, category, prompt}",
            lambda row: [row["prompt"]] if {"uid", "prompt"} <= set(row) else None,
            "uid",
            _arena_answer,
            lambda number, text, name: {"uid": str(number), "category": name, "prompt": text},
            lambda model: f"model_answer/{model}.jsonl",
        ),
        Benchmark(
            "arena_hard_2024",
            "Arena-Hard of 2024: JSON lines of {question_id, category, turns: [{content}]}",
            _old_arena_turns,
            "question_id",
            _old_arena_answer,
            None,
            lambda model: f"model_answer/{model}.jsonl",
        ),
        Benchmark(
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


def read_questions(path: Path, *, option: str = "--questions") -> tuple[Benchmark, list[Question]]:
    """Read the questions of a benchmark, which is identified by their fields.

    Args:
        path: a JSON file (a list) or JSON lines.
        option: the option or key that names the file, for messages.

    Returns:
        The benchmark and its questions, in the order of the file.

    Raises:
        SepoError: the file does not exist, or has no questions of a supported benchmark.
    """
    rows = json_rows(path, option=option)
    benchmark = next((benchmark for benchmark in BENCHMARKS.values() if benchmark.turns(rows[0]) is not None), None)
    if benchmark is None:
        expected = "; ".join(benchmark.expected for benchmark in BENCHMARKS.values())
        raise SepoError(
            f"{option} {path}: the first row has the fields {', '.join(rows[0]) or '(none)'}. Expected: {expected}."
        )
    questions, seen = [], set()
    for number, row in enumerate(rows, start=1):
        question = _question(benchmark, row, f"{option} {path}: row {number}", number)
        if question.id in seen:
            raise SepoError(
                f"{option} {path}: {benchmark.key} {question.id!r} occurs twice; each question needs a unique one."
            )
        seen.add(question.id)
        questions.append(question)
    return benchmark, questions


def _question(benchmark: Benchmark, row: Row, where: str, number: int) -> Question:
    turns = benchmark.turns(row)
    if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise SepoError(f"{where} is not a question. Expected {benchmark.expected}, with text in every turn.")
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise SepoError(
            f"{where} has a lone surrogate (half a character), expected valid Unicode; fix or remove the row."
        ) from None
    name = number if benchmark.key is None else row[benchmark.key]
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise SepoError(f"{where} has {name!r} as {benchmark.key}, expected a string or an integer.")
    return Question(name, tuple(turns), row)


def json_rows(path: Path, *, option: str) -> list[Row]:
    """Read a JSON list of objects, or JSON lines.

    Args:
        path: the file.
        option: the option or key that names the file, for messages.

    Raises:
        SepoError: the file does not exist, cannot be read, or has no rows.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SepoError(f"{option} {path}: the file does not exist (from {Path.cwd()}).") from None
    except (OSError, UnicodeError) as error:
        raise SepoError(f"{option} {path} cannot be read: {error}.") from error
    try:
        whole = text.lstrip().startswith("[")
        rows = json.loads(text) if whole else [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise SepoError(f"{option} {path} is neither a JSON list nor JSON lines: {error}.") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise SepoError(
            f"{option} {path} has {'rows that are not objects' if rows else 'no rows'}, expected a list of objects."
        )
    return list(rows)


def write_answers(
    benchmark: Benchmark,
    questions: Sequence[Question],
    answers: Sequence[Answer],
    *,
    model: str,
    folder: Path,
    time: float,
) -> Path:
    """Write the answers of a policy in the format of a benchmark.

    Args:
        benchmark: the benchmark.
        questions: its questions.
        answers: the answers to these questions.
        model: the name of the policy.
        folder: directory of the benchmark among the results; created if absent.
        time: time of the answers, in seconds since 1970.

    Returns:
        The path of the file.
    """
    file = folder / benchmark.file(model)
    rows = [
        benchmark.answer_row(question, answer, model, time) for question, answer in zip(questions, answers, strict=True)
    ]
    return _written(file, rows)


def own_question(benchmark: Benchmark, number: int, text: str, *, dataset: str) -> Question:
    """Return a question from another source in the format of a benchmark.

    Args:
        benchmark: a benchmark with ``question_row``.
        number: number of the prompt, which identifies its answer.
        text: the user's turn.
        dataset: source of the prompt.
    """
    assert benchmark.question_row is not None
    row = benchmark.question_row(number, text, dataset)
    return Question(number if benchmark.key is None else row[benchmark.key], (text,), row)


def write_questions(questions: Sequence[Question], *, folder: Path) -> Path:
    """Write questions of ``own_question`` to the file from which the judge of the benchmark reads questions."""
    return _written(folder / "question.jsonl", [question.row for question in questions])


def _written(file: Path, rows: Sequence[Row]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = file.suffix == ".jsonl"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) if lines else _indented(rows)
    file.write_text(text, encoding="utf-8")
    return file


def _indented(rows: Sequence[Row]) -> str:
    return json.dumps(list(rows), ensure_ascii=False, indent=1) + "\n"
