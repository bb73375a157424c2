"""Messages of preference rows as turns, and the reasons of those that cannot be read."""

import json

import pytest

from sepo.text.messages import MessageReader, TurnFormat, UnreadableRow, tools_text

READ = MessageReader()
TAGGED = MessageReader(format=TurnFormat(("<t>", "</t>"), ("<c>", "</c>"), "\n</r>\n<r>\n"))


def user(text):
    return {"role": "user", "content": text}


def says(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(name, arguments, **more):
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def pair(chosen, rejected, prompt=None, reader=READ):
    return reader.pair(prompt=prompt, chosen=chosen, rejected=rejected)


EXPECTED = (None, [user("Q")], says("A"), says("B"))


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        (None, [user("Q"), says("A")], [user("Q"), says("B")]),
        ("Q", [user("Q"), says("A")], [user("Q"), says("B")]),
        (" Q\n", [user("Q"), says("A")], [user("Q"), says("B")]),
        ([user("Q")], [user("Q"), says("A")], [user("Q"), says("B")]),
        ([user("Q")], [says("A")], [says("B")]),
        ("Q", [says("A")], [says("B")]),
        ("Q", "A", "B"),
        (None, json.dumps([user("Q"), says("A")]), json.dumps([user("Q"), says("B")])),
        ([user("Q")], says("A"), says("B")),
        ("Q", {"from": "gpt", "value": "A"}, {"from": "gpt", "value": "B"}),
        ([{"from": "human", "value": "Q"}], [{"from": "gpt", "value": "A"}], [{"from": "gpt", "value": "B"}]),
        ("Q", [says([{"type": "text", "text": "A"}])], [says([{"type": "text", "text": "B"}])]),
    ],
    ids=lambda value: None,
)
def test_every_form_of_a_pair_is_the_same_pair(prompt, chosen, rejected):
    assert pair(chosen, rejected, prompt) == EXPECTED


def test_several_turns_end_at_the_last_one():
    before = [user("Q"), says("Which?"), user("This.")]
    assert pair([*before, says("A")], [*before, says("B")]) == (None, before, says("A"), says("B"))
    assert pair([user("This."), says("A")], [user("This."), says("B")], before[:2]).prompt == before


def test_a_response_may_be_json():
    for text in ('[{"name": "Q"}]', '[{"role": "us', "[{}, 1]"):
        assert pair(text, "B", "Q").chosen == says(text)


def test_identical_responses_are_a_pair():
    assert pair([user("Q"), says("A")], [user("Q"), says("A")]) == (None, [user("Q")], says("A"), says("A"))


def test_the_system_turn_is_the_system_prompt():
    system = {"role": "system", "content": "Be brief."}
    assert pair([system, user("Q"), says("A")], [system, user("Q"), says("B")]).system == "Be brief."
    assert pair([says("A")], [says("B")], [{**system, "role": "developer"}, user("Q")]).system == "Be brief."


def test_calls_of_tools_and_their_results():
    """Arguments are JSON text in OpenAI's API, and objects in data sets; nulls come from the fields of other rows."""
    calls = [call("clock", '{"zone": "UTC"}'), call("sum", {"of": [1, 2], "zone": None}, id="x")]
    results = [{"role": "tool", "content": "12:00", "tool_call_id": "x"}, {"role": "tool", "content": {"sum": 3}}]
    before = [user("Q"), says(None, tool_calls=calls), *results]
    found = pair([*before, says("A")], [*before, says("B")], reader=TAGGED)
    assert json.loads(found.prompt[1]["content"]) == [
        {"name": "clock", "arguments": {"zone": "UTC"}},
        {"name": "sum", "arguments": {"of": [1, 2]}},
    ]
    assert [turn["role"] for turn in found.prompt] == ["user", "function", "observation"]
    assert found.prompt[2]["content"] == '12:00\n</r>\n<r>\n{"sum": 3}'


def test_a_response_may_call_tools():
    found = pair([user("Q"), says("", tool_calls=[call("clock", "")])], [user("Q"), says("B")])
    assert found.chosen == {"role": "function", "content": '[{"name": "clock", "arguments": {}}]'}
    assert found.rejected == says("B")


def test_text_and_reasoning_stand_before_a_call():
    message = says("I look.", tool_calls=[call("clock", {})], reasoning_content="Time?")
    found = pair([message], [says("B", thinking="No.")], "Q", reader=TAGGED)
    assert found.chosen["content"] == '<t>Time?</t>I look.\n<c>[{"name": "clock", "arguments": {}}]</c>'
    assert found.rejected["content"] == "<t>No.</t>B"


def test_reasoning_is_written_once_and_with_the_line_breaks_of_the_words():
    assert pair([says("\n\nA", reasoning="\nR\n")], [says("B")], "Q").chosen["content"] == "<think>\nR\n</think>\n\nA"
    whole = "<think>\nR\n</think>\n\nA"
    assert pair([says(whole, reasoning_content="R")], [says("B", reasoning_content="")], "Q").chosen == says(whole)


def test_names_of_the_data_set_come_first():
    reader = MessageReader("speaker", "text", {"me": "user", "function": "function"})
    question, answer = {"speaker": "me", "text": "Q"}, {"speaker": "assistant", "text": "A"}
    called = {"speaker": "function", "text": '{"name": "f", "arguments": {}}'}
    assert pair([question, answer], [question, called], reader=reader).rejected["role"] == "function"


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        (None, "chosen is empty"),
        ([], "chosen is empty"),
        (7, "chosen is a number; text or messages are expected"),
        (["A"], "chosen has a message that is text; role and content are expected"),
        ([user("Q"), {"role": "critic", "content": "A"}], "chosen has a message with the role 'critic'"),
        ([user("Q"), {"content": "A"}], "chosen has a message with the role None"),
        ([user("Q"), says(None)], "chosen has a message without content"),
        ([user("Q"), says(3)], "chosen has a message whose content is a number; text is expected"),
        ([user("Q"), says("A"), user("R")], "chosen ends with a turn of user"),
        ([user("Q")], "chosen ends with a turn of user"),
        ([user("P"), says("A")], "chosen and rejected have different prompts"),
        ([says("A")], "one of chosen and rejected is a whole conversation"),
        ([user("Q"), says("A"), user("R"), says("C")], "chosen and rejected differ before their last turn"),
        ([user("Q"), {"role": "system", "content": "S"}, says("A")], "a system turn follows another turn"),
        ([{"role": "system", "content": "S"}, user("Q"), says("A")], "different system turns"),
        ([user("Q"), says("", tool_calls=[{"id": "x"}])], "a tool call has no function with a name"),
        ([user("Q"), says("", tool_calls=[call("f", "{a")])], "the arguments of a tool call are text that is not JSON"),
        ([user("Q"), says("", tool_calls=[call("f", "[1]")])], "the arguments of a tool call are a list"),
        ([user("Q"), says("A", reasoning=["R"])], "chosen has reasoning that is a list"),
        (
            [user([{"type": "image_url", "image_url": "x"}]), says("A")],
            "chosen has a message with a part of type 'image_url'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_reason_of_a_row_that_cannot_be_read(chosen, reason):
    with pytest.raises(UnreadableRow) as caught:
        pair(chosen, [user("Q"), says("B")])
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (None, "there is no prompt"),
        ([user("Q"), says("A")], "a turn of assistant follows one of assistant"),
        ([user("Q"), user("R")], "a turn of user follows one of user"),
        ([says("Hello"), user("Q")], "the conversation begins with a turn of assistant"),
    ],
)
def test_the_reason_of_a_prompt_that_cannot_be_used(prompt, reason):
    with pytest.raises(UnreadableRow, match=reason):
        pair([says("A")], [says("B")], prompt)


def test_a_prompt_that_is_not_in_the_conversation():
    with pytest.raises(UnreadableRow, match="the prompt is not the beginning of chosen and rejected"):
        pair([user("Q"), says("A")], [user("Q"), says("B")], "Another question")


def test_tools_are_json_text():
    tool = {"name": "f", "parameters": {"type": "object", "enum": None}}
    expected = [{"name": "f", "parameters": {"type": "object"}}]
    assert json.loads(tools_text([tool])) == json.loads(tools_text(tool)) == expected
    assert json.loads(tools_text([json.dumps(tool)])) == [tool]
    assert tools_text(' [{"name": "add"}] ') == ' [{"name": "add"}] '
    for none in (None, [], "", " ", " [] ", "{}", "null"):
        assert tools_text(none) == ""
    for wrong in ([1, "{"], 3):
        with pytest.raises(UnreadableRow):
            tools_text(wrong)
