"""Questions of benchmarks by their fields, answers in the judges' formats, and files that are not questions."""

import json

import pytest

from sepo.errors import SepoError
from sepo.evaluation.benchmarks import BENCHMARKS, Answer, own_question, read_questions, write_answers, write_questions

ALPACA = [
    {"dataset": "koala", "instruction": "Name a colour.", "output": "Blue.", "generator": "text_davinci_003"},
    {"dataset": "vicuna", "instruction": "Translate.", "input": "chat", "output": "cat", "generator": "x"},
]
ARENA = [{"uid": "2edb", "category": "hard_prompt", "subcategory": "coding", "prompt": "Write it."}]
OLD_ARENA = [{"question_id": "96d2", "category": "arena-hard-v0.1", "cluster": "Keys", "turns": [{"content": "How?"}]}]
MT = [
    {"question_id": 81, "category": "writing", "turns": ["Write.", "Rewrite."]},
    {"question_id": 101, "category": "math", "turns": ["2 + 2?", "And 3?"], "reference": ["4", "7"]},
]
FILES = {"alpaca_eval": ALPACA, "arena_hard": ARENA, "arena_hard_2024": OLD_ARENA, "mt_bench": MT}
ANSWER = Answer((" one\n", "two"), (4, 2))


def saved(path, rows, *, lines):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) if lines else json.dumps(rows)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_benchmarks_are_identified_by_the_fields_of_their_questions(tmp_path, name, lines):
    benchmark, questions = read_questions(saved(tmp_path / "q", FILES[name], lines=lines))
    assert benchmark.name == name
    assert [question.row for question in questions] == FILES[name]
    assert {question.turns for question in questions} == {
        "alpaca_eval": {("Name a colour.",), ("Translate.\n\nchat",)},
        "arena_hard": {("Write it.",)},
        "arena_hard_2024": {("How?",)},
        "mt_bench": {("Write.", "Rewrite."), ("2 + 2?", "And 3?")},
    }[name]


def answered(tmp_path, name):
    benchmark, questions = read_questions(saved(tmp_path / "q", FILES[name], lines=True))
    answers = [Answer(ANSWER.turns[: len(each.turns)], ANSWER.tokens[: len(each.turns)]) for each in questions]
    return write_answers(benchmark, questions, answers, model="my-7b", folder=tmp_path / name, time=1718302375.15)


def without_ids(rows, key):
    assert len({row.pop(key) for row in rows}) == len(rows)
    return rows


def lines(path):
    with path.open() as file:  # as the judges read it: U+2028 in a text does not end the line
        return [json.loads(line) for line in file]


def test_alpaca_eval_reads_a_list_in_the_order_of_its_set(tmp_path):
    file = answered(tmp_path, "alpaca_eval")
    assert file == tmp_path / "alpaca_eval" / "my-7b.json"
    assert json.loads(file.read_text()) == [
        {"instruction": "Name a colour.", "dataset": "koala", "output": "one", "generator": "my-7b"},
        {"instruction": "Translate.", "input": "chat", "dataset": "vicuna", "output": "one", "generator": "my-7b"},
    ]


def test_arena_hard_reads_messages_whose_last_one_holds_the_answer(tmp_path):
    file = answered(tmp_path, "arena_hard")
    assert file == tmp_path / "arena_hard" / "model_answer" / "my-7b.jsonl"
    messages = [{"role": "user", "content": "Write it."}, {"role": "assistant", "content": {"answer": "one"}}]
    expected = {"uid": "2edb", "model": "my-7b", "messages": messages, "tstamp": 1718302375.15}
    assert without_ids(lines(file), "ans_id") == [expected]


def test_arena_hard_of_2024_reads_choices_with_lengths(tmp_path):
    rows = without_ids(lines(answered(tmp_path, "arena_hard_2024")), "answer_id")
    choices = [{"index": 0, "turns": [{"content": "one", "token_len": 4}]}]
    assert rows == [{"question_id": "96d2", "model_id": "my-7b", "choices": choices, "tstamp": 1718302375.15}]


def test_mt_bench_reads_the_texts_of_both_turns(tmp_path):
    rows = without_ids(lines(answered(tmp_path, "mt_bench")), "answer_id")
    choices = [{"index": 0, "turns": ["one", "two"]}]
    assert rows == [
        {"question_id": number, "model_id": "my-7b", "choices": choices, "tstamp": 1718302375.15}
        for number in (81, 101)
    ]


@pytest.mark.parametrize("name", [name for name, benchmark in BENCHMARKS.items() if benchmark.question_row])
def test_other_prompts_take_a_benchmarks_form_and_are_read_back(tmp_path, name):
    own = [
        own_question(BENCHMARKS[name], number, text, dataset="mine") for number, text in ((3, "a?"), (8, "b\u2028?"))
    ]
    benchmark, questions = read_questions(write_questions(own, folder=tmp_path))
    assert benchmark.name == name
    assert [each.turns for each in questions] == [("a?",), ("b\u2028?",)]
    file = write_answers(benchmark, own, [Answer(("x",), (1,))] * 2, model="m", folder=tmp_path, time=0.0)
    rows = json.loads(file.read_text()) if file.suffix == ".json" else lines(file)
    if benchmark.key:
        assert [row[benchmark.key] for row in rows] == [each.id for each in questions]
        assert {each.row["category"] for each in questions} == {"mine"}
    else:
        assert [(row["instruction"], row["dataset"]) for row in rows] == [("a?", "mine"), ("b\u2028?", "mine")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("[]", "has no rows"),
        ("3", "has rows that are not objects"),
        ("[1, 2]", "has rows that are not objects"),
        ("{", "is neither a JSON list nor JSON lines"),
        ("[" * 100_000, "is neither a JSON list nor JSON lines"),
        ('{"question": "?"}', r"has the fields question. Expected: AlpacaEval: a JSON list .* MT-Bench: JSON lines"),
        ("{}", "has the fields .none."),
        (
            '{"uid": "a", "prompt": "x"}\n{"uid": "b"}',
            r"row 2 is not a question. Expected Arena-Hard: JSON lines of .uid",
        ),
        ('{"uid": "a", "prompt": "x"}\n{"uid": "a", "prompt": "y"}', "uid 'a' occurs twice"),
        ('{"uid": ["a"], "prompt": "x"}', r"row 1 has \['a'\] as uid, expected a string or an integer"),
        ('{"uid": true, "prompt": "x"}', "row 1 has True as uid"),
        ('{"uid": "a", "prompt": " "}', "row 1 is not a question"),
        ('{"uid": "a", "prompt": 7}', "row 1 is not a question"),
        ('{"uid": "a", "prompt": "\\ud800"}', "row 1 has a lone surrogate"),
        ('{"question_id": 1, "turns": []}', "row 1 is not a question. Expected MT-Bench"),
        ('{"question_id": 1, "turns": "ab"}', "has the fields question_id, turns"),
        ('{"question_id": 1, "turns": ["a", 7]}', "row 1 is not a question. Expected MT-Bench"),
        ('{"question_id": 1, "turns": [{"text": "a"}]}', "row 1 is not a question. Expected Arena-Hard of 2024"),
    ],
)
def test_files_that_are_not_questions_are_errors(tmp_path, text, message):
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(SepoError, match=message) as error:
        read_questions(tmp_path / "q.jsonl")
    assert str(error.value).startswith("--questions ")


def test_a_missing_and_an_unreadable_file(tmp_path):
    with pytest.raises(SepoError, match="the file does not exist"):
        read_questions(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'[{"instruction": "\xe9"}]')
    with pytest.raises(SepoError, match="cannot be read"):
        read_questions(tmp_path / "latin.json")
