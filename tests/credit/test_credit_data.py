"""Span-labelled pairs from files: accepted formats, and errors that name row and field."""

import json

import pytest

from sepo.credit.data import ErrorSpan, checked_pairs, error_types, read_pairs
from sepo.errors import SepoError


def row(**changes):
    made = {
        "conversations": [{"from": "human", "value": "How many legs has a spider?"}],
        "chosen": {"from": "gpt", "value": "It has eight legs."},
        "rejected": {"from": "gpt", "value": "It has six legs."},
        "rejected_error_spans": [{"start": 7, "end": 10, "type": "Wrong-Number"}],
        **changes,
    }
    return {name: value for name, value in made.items() if value is not None}


def test_rows_in_each_of_the_supported_formats():
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many legs has a spider?"}]
    spans = [{"start": 7, "end": 10}]
    first, second, third = checked_pairs(
        [
            row(),
            row(conversations=None, messages=turns, chosen="It has eight legs.", rejected_error_spans=spans),
            row(conversations=None, prompt="How many legs has a spider?", rejected={"content": "It has six legs."}),
        ],
        name="pairs.json",
    )
    assert first.messages == second.messages == third.messages
    assert first.messages == ({"role": "user", "content": "How many legs has a spider?"},)
    assert (first.chosen, first.rejected) == (third.chosen, third.rejected) == (second.chosen, second.rejected)
    assert first.spans == third.spans == (ErrorSpan(7, 10, "Wrong-Number"),)
    assert second.spans == (ErrorSpan(7, 10, "untyped"),)
    assert (first.system, second.system) == ("", "Be brief.")
    assert [pair.row for pair in (first, second, third)] == [0, 1, 2]
    assert error_types([first, second, third]) == ["Wrong-Number", "untyped"]


def test_several_turns_tools_and_empty_spans():
    talk = [
        {"from": "human", "value": "a"},
        {"from": "function_call", "value": "b"},
        {"from": "observation", "value": "c"},
    ]
    pair, other = checked_pairs([row(conversations=talk, tools="[]"), row(rejected_error_spans=[])], name="x")
    assert [turn["role"] for turn in pair.messages] == ["user", "function", "observation"]
    assert pair.tools == "[]"
    assert other.spans == ()
    assert pair.conversation["answers"] == [pair.chosen, pair.rejected]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rejected_error_spans": None}, "rejected_error_spans is missing"),
        ({"rejected_error_spans": {}}, r"rejected_error_spans is \{\}, expected a list"),
        ({"rejected_error_spans": [[0, 4]]}, r"rejected_error_spans\[0\] is \[0, 4\], expected an object"),
        ({"rejected_error_spans": [{"start": 0}]}, r"\[0\] is .* expected an object with start and end"),
        ({"rejected_error_spans": [{"start": 0, "end": 17}]}, r"\[0\] has start 0 and end 17, expected .* <= 16"),
        ({"rejected_error_spans": [{"start": 4, "end": 4}]}, r"\[0\] has start 4 and end 4"),
        ({"rejected_error_spans": [{"start": -1, "end": 4}]}, r"\[0\] has start -1 and end 4"),
        ({"rejected_error_spans": [{"start": 0.0, "end": 4}]}, "expected two integers"),
        ({"rejected_error_spans": [{"start": False, "end": True}]}, "expected two integers"),
        ({"rejected_error_spans": [{"start": 0, "end": 4, "type": 3}]}, r"\[0\].type is 3"),
        ({"rejected": None}, "rejected is None, expected a response"),
        ({"rejected": {"from": "gpt", "value": ""}}, "rejected is .* expected a response"),
        ({"chosen": 5}, "chosen is 5"),
        ({"conversations": None}, "expected conversations, messages or prompt"),
        ({"conversations": "hello"}, "conversations is 'hello', expected a list of turns"),
        ({"conversations": [{"from": "human"}]}, r"conversations\[0\] is .* expected"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, r"conversations\[0\] is .* human"),
        ({"conversations": []}, "0 turns before the response"),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}, "2 turns before"),
        ({"system": 4}, "system is 4, expected a string"),
    ],
)
def test_a_wrong_row_is_named_with_its_field(changes, message):
    with pytest.raises(SepoError, match=f"row 1 of my.json.*{message}"):
        checked_pairs([row(), row(**changes)], name="my.json")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "my.json has no rows"),
        ({"data": []}, "my.json has a dict at its top"),
        ([row(rejected_error_spans=[])], "no row of my.json has a span"),
        (["text"], "row 0 of my.json is 'text', expected an object"),
        ([None], "row 0 of my.json is None"),
    ],
)
def test_a_file_without_rows_is_an_error(rows, message):
    with pytest.raises(SepoError, match=message):
        checked_pairs(rows, name="my.json")


def test_files_of_both_endings(tmp_path):
    rows = [row(), row(rejected_error_spans=[{"start": 0, "end": 2, "type": "Ünsinn"}])]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert read_pairs(str(tmp_path / "a.json")) == read_pairs(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'[{"chosen": ', "a.json is not JSON"),
        ("a.jsonl", b"{}\n{", "a.jsonl, line 2 is not JSON"),
        ("a.json", b"\xff\xfe\x00", "cannot be read as UTF-8"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SepoError, match=message):
        read_pairs(str(tmp_path / name))


def test_a_missing_file_names_the_built_in_sets(tmp_path):
    with pytest.raises(SepoError, match=r"'demo:fluentt' is not a file .* demo:fluent.*Did you mean 'demo:fluent'"):
        read_pairs("demo:fluentt")


@pytest.mark.parametrize("name", ["demo", "demo:obvious", "demo:fluent"])
def test_the_built_in_sets_are_read(name):
    pairs = read_pairs(name)
    assert len(pairs) >= 50
    assert all(pair.spans for pair in pairs)
