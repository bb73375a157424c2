"""Prompts from files: rows with a prompt or messages, questions of benchmarks, and what is refused."""

import json

import pytest

from sepo.errors import SepoError
from sepo.evaluation.prompt_files import read_prompts


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_with_prompt_or_messages(tmp_path):
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    file = write(
        tmp_path / "prompts.jsonl",
        {"prompt": "Name a river.", "answer": "Elbe"},
        {"messages": [{"role": "system", "content": "Be brief."}, *turns, {"role": "user", "content": "And 3 + 3?"}]},
        {"messages": turns, "system": "Count.", "tools": [{"name": "add"}], "answer": " "},
    )
    first, second, third = read_prompts(file, option="pairs_prompts", expected_column="answer")
    assert (first.messages, first.system, first.expected) == (
        ({"role": "user", "content": "Name a river."},),
        "",
        "Elbe",
    )
    assert [turn["role"] for turn in second.messages] == ["user", "assistant", "user"]
    assert (second.system, second.expected) == ("Be brief.", None)
    assert third.messages == ({"role": "user", "content": "2 + 2?"},)  # the response is left out
    assert (third.system, third.tools, third.expected) == ("Count.", '[{"name": "add"}]', None)
    assert [prompt.question.id for prompt in (first, second, third)] == [0, 1, 2]
    assert first.question.turns == ("Name a river.",)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"instruction": "Add.", "input": "1, 2"}, "Add.\n\n1, 2"),
        ({"uid": "u", "category": "c", "prompt": "Add."}, "Add."),
        ({"question_id": 7, "category": "c", "turns": ["First.", "Second."]}, "First."),
    ],
)
def test_questions_of_benchmarks(tmp_path, row, text):
    (prompt,) = read_prompts(write(tmp_path / "questions.jsonl", row), option="pairs_prompts")
    assert prompt.messages == ({"role": "user", "content": text},)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"text": "x"}],
            r"pairs_prompts .*f.jsonl has no prompts: the first row has the fields text, expected prompt or",
        ),
        ([], r"pairs_prompts .*f.jsonl has no rows, expected a list of objects"),
        (
            [{"prompt": "a"}, {"prompt": " "}],
            r"row 2 is no prompt: it has no text of a user; expected prompt, the text",
        ),
        ([{"prompt": "a"}, {}], r"row 2 is no prompt: it has no text of a user"),
        ([{"messages": [{"role": "assistant", "content": "a"}]}], r"row 1 is no prompt: it has no text of a user"),
        (
            [{"messages": [{"role": "user", "content": "a"}] * 2}],
            r"row 1 is no prompt: a turn of user follows one of user",
        ),
        ([{"messages": 5}], r"row 1 is no prompt: the prompt is a number; text or messages are expected"),
        ([{"prompt": "a", "system": 5}], r"row 1 is no prompt: system is not text"),
        ([{"prompt": "a"}], r"no row has the field answer \(expected_column\), .* the first row has prompt"),
    ],
)
def test_files_without_prompts(tmp_path, rows, message):
    with pytest.raises(SepoError, match=message):
        read_prompts(write(tmp_path / "f.jsonl", *rows), option="pairs_prompts", expected_column="answer")


def test_a_missing_file(tmp_path):
    with pytest.raises(SepoError, match=r"pairs_prompts .*none.jsonl: the file does not exist"):
        read_prompts(tmp_path / "none.jsonl", option="pairs_prompts")
