"""The text of T-REG's prompts (Figure 2), for both directions and any quoted data."""

import pytest

from sepo.text.revision_prompts import answer_marker, quoted_conversation, revision_prompt

# Figure 2 with the description of its caption filled in by hand.
WORSE = """\
Instruction: Below is a conversation between an user and an AI Assistant.

[User Question]
How many legs has a spider?

[The start of Assistant's Answer]
Eight.
[The end of Assistant's Answer]

Please rewrite the Assistant's Answer to make it worse. Specifically, the rewritten worse answer should closely \
resemble the original answer but is worse in terms of one or multiple of the following aspects: helpfulness, \
correctness, coherence, verbosity.

IMPORTANT: Please strictly follow the following format:
First, choose one or multiple aspects to generate a worse answer, such as rewrite the original answer to be \
unhelpful, incorrect, incoherent, verbose, etc.
[The start of a rewritten worse answer]
<provide a worse answer here>
[The end of a rewritten worse answer]"""


def test_the_prompt_is_figure_2():
    assert revision_prompt("How many legs has a spider?", "Eight.", "worse") == WORSE


def test_better_differs_only_in_direction_and_description():
    expected = WORSE.replace("worse", "better").replace(
        "unhelpful, incorrect, incoherent, verbose", "helpful, correct, coherent, concise"
    )
    assert revision_prompt("How many legs has a spider?", "Eight.", "better") == expected


@pytest.mark.parametrize("direction", ["better", "worse"])
def test_the_marker_is_the_line_that_the_prompt_requires(direction):
    marker = answer_marker(direction)
    assert marker == f"[The start of a rewritten {direction} answer]\n"
    assert f"\n{marker}" in revision_prompt("q", "a", direction)


def test_braces_in_the_data_are_data():
    text = revision_prompt("What is {answer}?", "{direction} %s {0}", "better")
    assert "What is {answer}?" in text
    assert "{direction} %s {0}" in text


def test_a_single_question_is_quoted_unchanged():
    assert quoted_conversation([{"role": "user", "content": "Hi?\n"}]) == "Hi?\n"
    assert quoted_conversation([{"role": "user", "content": "Hi?"}], system="", tools=None) == "Hi?"


def test_turns_system_and_tools_are_labelled():
    turns = [
        {"role": "user", "content": "2+2?"},
        {"role": "function", "content": "add(2, 2)"},
        {"role": "observation", "content": "4"},
    ]
    assert quoted_conversation(turns, system="Be brief.", tools='[{"name": "add"}]') == (
        'System: Be brief.\n\nTools: [{"name": "add"}]\n\nUser: 2+2?\n\nTool call: add(2, 2)\n\nTool result: 4'
    )
