"""Rows of messages in every form that preference data sets have: what the policy is trained on, and the table."""

import json
import logging

import pytest

from sepo.errors import SepoError
from sepo.hosts.axolotl.messages import Columns, read_row
from sepo.text.messages import UnreadableRow
from tests.support import axo

SIDES = ("chosen", "rejected")
RANDOM = {"token_scorer": "random"}
MINOR = {"token_scorer": "none", "objective": "minor_dpo"}
QWEN = {"chat_template": "qwen3", "sequence_len": 2048}
"""Its prompt ends with the beginning of a thought."""


def user(text):
    return {"role": "user", "content": text}


def says(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.fixture
def logged(monkeypatch, caplog):
    """Records of sepo's logger, which a run sends to the host's handlers."""
    monkeypatch.setattr(logging.getLogger("sepo"), "handlers", [caplog.handler])
    return caplog


def texts(words, meta):
    """Return the prompt and both responses of every row, as the policy is trained on them."""
    found = []
    for row in meta.train_dataset:
        sides = [axo.response(row, side) for side in SIDES]
        prompt = row["chosen_input_ids"][: len(row["chosen_input_ids"]) - len(sides[0])]
        assert row["rejected_input_ids"][: len(prompt)] == prompt
        found.append([words.decode(prompt), *map(words.decode, sides)])
    return found


BEFORE = [user("How many legs has a spider?"), says("Do you mean an adult?"), user("Yes.")]
CHOSEN = [*BEFORE, says("It has 8 legs.")]
REJECTED = [*BEFORE, says("It has 3 legs.")]
FEEDBACK = [
    {"prompt": BEFORE[0]["content"], "messages": CHOSEN, "chosen": CHOSEN, "rejected": REJECTED, "score_chosen": 8.0},
    {"prompt": "Hello.", "messages": [user("Hello."), says("Hi.")], "chosen": [user("Hello."), says("Hi.")],
     "rejected": [user("Hello."), says("Go away.")], "score_chosen": 9.0},
    {"prompt": "Same?", "messages": [user("Same?"), says("Yes.")], "chosen": [user("Same?"), says("Yes.")],
     "rejected": [user("Same?"), says("Yes.")], "score_chosen": 1.0},
]  # fmt: skip


def test_messages_with_different_fields_become_text(prepared, words):
    """`datasets` reads them as lists of JSON."""
    plain = {"prompt": [user("Hello.")], "chosen": [says("Hi.")], "rejected": [says("Go away.")]}
    call = {"id": "1", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}
    called = {**says(""), "content": None, "tool_calls": [call]}
    other = {"prompt": [user("Time?"), called], "chosen": [says("Noon.")], "rejected": [says("Late.")]}
    meta, _ = prepared([plain, other], MINOR, "chat_template.default", entry={"field_messages": "prompt"})
    assert texts(words, meta)[0] == [
        "<|im_start|>user\nHello.<|im_end|>\n<|im_start|>assistant\n", "Hi.<|im_end|>", "Go away.<|im_end|>"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        ("chat_template.default", {}),  # the column `messages` includes the chosen response
        ("chat_template.default", {"field_messages": "prompt"}),
        ("chat_template.argilla_chat", {}),
    ],
    ids=["messages", "prompt", "argilla"],
)
def test_whole_conversations_train_on_the_last_turn(prepared, words, logged, kind, entry):
    meta, _ = prepared(FEEDBACK, MINOR, kind, entry=entry)
    assert texts(words, meta) == [
        ["<|im_start|>user\nHow many legs has a spider?<|im_end|>\n<|im_start|>assistant\nDo you mean an adult?"
         "<|im_end|>\n<|im_start|>user\nYes.<|im_end|>\n<|im_start|>assistant\n",
         "It has 8 legs.<|im_end|>", "It has 3 legs.<|im_end|>"],
        ["<|im_start|>user\nHello.<|im_end|>\n<|im_start|>assistant\n", "Hi.<|im_end|>", "Go away.<|im_end|>"],
    ]  # fmt: skip
    assert "1 skipped  both responses have the same tokens" in logged.text


def test_conversations_of_different_prompts_are_left_out_and_counted(prepared, words, logged):
    """Axolotl's strategy would train the rejected response after the other prompt."""
    other = {**FEEDBACK[1], "rejected": [user("Good bye."), says("Go away.")]}
    strange = {**FEEDBACK[1], "chosen": [{"role": "narrator", "content": "Once."}, says("Hi.")]}
    meta, _ = prepared([*FEEDBACK[:2], other, other, strange], MINOR, "chat_template.argilla_chat")
    assert len(meta.train_dataset) == 2
    assert "2 skipped  chosen and rejected have different prompts" in logged.text
    assert "1 skipped  chosen has a message with the role 'narrator'" in logged.text
    with pytest.raises(SepoError, match="no row is left to train on: in 1 rows chosen and rejected have different pr"):
        prepared([other], MINOR, "chat_template.argilla_chat")


CLOCK = {
    "type": "function",
    "function": {"name": "clock", "description": "The time.",
                 "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}},
}  # fmt: skip
LOOKED = [user("What time is it?"), says(None, tool_calls=[call("clock", {"zone": "UTC"})])]
RESULT = {"role": "tool", "content": "12:00"}
AGENT = [
    {"messages": [*LOOKED, RESULT], "chosen": says("It is 12:00."), "rejected": says("I do not know."),
     "tools": [CLOCK]},
    {"messages": LOOKED[:1], "chosen": says("", tool_calls=[call("clock", {"zone": "UTC"})]),
     "rejected": says("", tool_calls=[call("clock", {"town": "Rome"})]), "tools": [CLOCK]},
    {"messages": LOOKED[:1], "chosen": says("Let me look.", tool_calls=[call("clock", {"zone": "UTC"})]),
     "rejected": says("No."), "tools": [CLOCK]},
]  # fmt: skip
CALLED = '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>'


def test_tools_calls_and_results_are_written_by_the_template(prepared, words):
    meta, _ = prepared(AGENT, RANDOM, **QWEN)
    first, second, third = texts(words, meta)
    for prompt, _, _ in (first, second, third):
        assert "<tools>" in prompt
        assert '"name": "clock"' in prompt
    assert f"{CALLED}<|im_end|>\n<|im_start|>user\n<tool_response>\n12:00\n</tool_response><|im_end|>" in first[0]
    assert [text.removeprefix("</think>\n\n") for text in first[1:]] == [
        "It is 12:00.<|im_end|>", "I do not know.<|im_end|>"
    ]  # fmt: skip
    assert f"{CALLED}<|im_end|>" in second[1]
    assert '{"town": "Rome"}' in second[2]
    assert "null" not in second[2]
    assert f"Let me look.\n{CALLED}<|im_end|>" in third[1]
    assert [row["chosen_candidates"] for row in meta.train_dataset]


def test_calls_that_the_template_does_not_write_are_counted(prepared, logged):
    meta, _ = prepared([*AGENT, {"messages": [user("Hello.")], "chosen": says("Hi."), "rejected": says("No.")}], MINOR)
    assert len(meta.train_dataset) == 1
    assert "3 skipped  the chat template does not write calls of tools" in logged.text


THOUGHT = [
    {"messages": [user("2 + 2?")], "chosen": says("4.", reasoning_content="Two and two."), "rejected": says("5.")},
    {"messages": [user("1 + 1?")], "chosen": says("Two."), "rejected": says("Three.", reasoning_content="One, two.")},
    {"messages": [user("1 - 1?")], "chosen": says("0."), "rejected": says("1.")},
]


def test_thoughts_are_part_of_the_response_and_an_empty_one_is_no_candidate(prepared, words):
    meta, _ = prepared(THOUGHT, RANDOM, **QWEN)
    first, second, third = texts(words, meta)
    assert first[0].endswith("<|im_start|>assistant\n<think>\n")
    assert first[1:] == ["Two and two.\n</think>\n\n4.<|im_end|>", "\n</think>\n\n5.<|im_end|>"]
    assert second[2] == "One, two.\n</think>\n\nThree.<|im_end|>"
    assert third[0].endswith("<|im_start|>assistant\n<think>\n\n")
    assert third[1:] == ["</think>\n\n0.<|im_end|>", "</think>\n\n1.<|im_end|>"]
    for index, side, text in ((0, "rejected", "5."), (1, "chosen", "Two."), (2, "chosen", "0."), (2, "rejected", "1.")):
        row = meta.train_dataset[index]
        pairs = zip(axo.response(row, side), row[f"{side}_candidates"], strict=True)
        assert words.decode([token for token, candidate in pairs if candidate]) == f"{text}<|im_end|>"
    assert all(meta.train_dataset[0]["chosen_candidates"])


def test_thoughts_that_the_template_does_not_write_are_counted(prepared, words, logged):
    meta, _ = prepared(THOUGHT, MINOR)
    assert [row[1] for row in texts(words, meta)] == ["4.<|im_end|>", "Two.<|im_end|>", "0.<|im_end|>"]
    assert "2 changed  the chat template does not write the thought of a response" in logged.text


def test_rows_that_are_all_too_long_are_one_line(prepared):
    with pytest.raises(SepoError, match=r"train: no row is left: Axolotl has dropped all .* sequence_len \(32\)"):
        prepared(AGENT, MINOR, chat_template="qwen3", sequence_len=32)


def test_responses_that_the_template_trims_are_kept(prepared, words):
    """Axolotl 0.19 would take the last character of the turn as the response, or a dummy turn for an empty one."""
    rows = [
        {"messages": [user("A?")], "chosen": says(" It has 3 legs."), "rejected": says("No.")},
        {"messages": [user("B?")], "chosen": says("It has 3 legs."), "rejected": says("")},
    ]
    meta, _ = prepared(rows, RANDOM, chat_template="llama3")
    for _, chosen, rejected in texts(words, meta):
        assert chosen.startswith("It has 3 legs.<|eot_id|>")
        assert rejected.startswith(("No.<|eot_id|>", "<|eot_id|>"))


def test_an_oracle_and_prompts_read_the_calls(words):
    """The conversation that other templates and T-REG's prompts get."""
    from axolotl.utils.dict import DictDefault

    from sepo.hosts.axolotl.rows import _reading

    cfg = DictDefault({"chat_template": "qwen3", "datasets": [{}]})
    transform, _ = _reading(lambda *args, **kwargs: None, "chat_template.default", cfg, 0, keep="whole")
    samples = {name: [value] for name, value in (AGENT[2] | {"messages": AGENT[0]["messages"]}).items()}
    kept = json.loads(transform(samples, tokenizer=words)["sepo_conversation"][0])
    assert [turn["role"] for turn in kept["messages"]] == ["user", "function", "observation"]
    assert json.loads(kept["messages"][1]["content"]) == [{"name": "clock", "arguments": {"zone": "UTC"}}]
    assert kept["answers"] == [f"</think>\n\nLet me look.\n{CALLED}", "</think>\n\nNo."]
    assert json.loads(kept["tools"]) == [CLOCK]


def test_a_run_selects_and_shows_what_the_author_wrote(root, tmp_path, train, capsys):
    """Thoughts, calls and an identical pair, with an oracle: the record, the table and `sepo show`."""
    from sepo.cli import main
    from sepo.runs.log_reader import read_log
    from sepo.runs.token_samples_reader import read_record

    output = tmp_path / "out"
    path = axo.save_rows(tmp_path / "rows.jsonl", [*THOUGHT, AGENT[1], {**THOUGHT[2], "rejected": says("0.")}])
    block = {**axo.block(root, output, "sepo"), "chosen_select_ratio": 1.0, "rejected_select_ratio": 0.5}
    rows = {"datasets": [axo.rows_at(path)], "shuffle_merged_datasets": False}
    train(axo.config(root, output, rl="sepo", sepo=block, **rows, **QWEN, micro_batch_size=4, max_steps=2))
    pairs, unread = read_record(output)
    assert unread == 0
    assert {pair.row for pair in pairs} == {0, 1, 2, 3}
    for pair in pairs:
        may = {side: getattr(pair, side).candidates or (True,) * len(getattr(pair, side).tokens) for side in SIDES}
        assert pair.chosen.selected == may["chosen"]
        assert not any(
            kept > candidate for kept, candidate in zip(pair.rejected.selected, may["rejected"], strict=True)
        )
    assert sum(pair.rejected.candidates is not None for pair in pairs) >= 2
    written = {pair.row: "".join(pair.chosen.tokens) for pair in pairs}
    assert written[0] == "Two and two.\n</think>\n\n4.<|im_end|>"
    assert written[3].endswith(f"{CALLED}<|im_end|>")
    found = read_log(output).rows["train"]
    assert (found["given"], found["used"]) == (5, 4)
    assert [(loss["what"], loss["rows"]) for loss in found["losses"]] == [("skipped", 1)]
    assert main(["show", str(output), "--row", "2"]) == 0
    printed = capsys.readouterr().out
    assert "without the chat template's" in printed
    assert "⟦0.<|im_end|>⟧" in printed


DEFAULT = Columns("messages", "chosen", "rejected")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user("Q")], "chosen": says("A"), "rejected": says("B")},
        {"messages": "Q", "chosen": "A", "rejected": "B"},
        {"messages": [user("Q")], "chosen": [says("A")], "rejected": [says("B")]},
        {"messages": [user("Q")], "chosen": [user("Q"), says("A")], "rejected": [user("Q"), says("B")]},
        {"messages": [user("Q")], "chosen": {**says("A"), "tool_calls": None}, "rejected": {**says("B"), "weight": 1}},
    ],
)
def test_rows_of_plain_text_are_left_to_the_hosts_strategy(row):
    read = read_row(row, DEFAULT)
    assert read.plain
    assert read[:4] == ([user("Q")], says("A"), says("B"), None)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": [], "rejected": "B"}, "chosen is empty"),
        ({"chosen": [user("x")], "rejected": "B"}, "chosen ends with a turn of user"),
        ({"chosen": says(None), "rejected": "B"}, "chosen has a message without content"),
        ({"chosen": "A", "rejected": 3}, "rejected is a number; text or messages are expected"),
        ({"chosen": "A", "rejected": "B", "tools": '{"name": "x"}'}, "tools is an object; a list is expected"),
        ({"chosen": says("", tool_calls=[{"function": {}}]), "rejected": "B"}, "has no function with a name"),
        ({"chosen": [user("other"), says("A")], "rejected": [user("other"), says("B")]}, "is not the beginning of"),
    ],
)
def test_rows_that_cannot_be_read_have_a_reason(row, reason):
    with pytest.raises(UnreadableRow, match=reason):
        read_row({"messages": [user("Q")], **row}, DEFAULT)


def test_rows_of_sepo_pairs(prepared, words):
    """What `sepo pairs` writes trains here as it is, with system prompts, earlier turns, calls of tools and results."""
    from sepo.evaluation.benchmarks import Question
    from sepo.evaluation.prompts import Prompt
    from sepo.pairs.pairing import JudgedResponse, Pair
    from sepo.pairs.records import JudgedPrompt, ranking_rows

    tools = json.dumps([CLOCK])
    called = {"role": "function", "content": '{"name": "clock", "arguments": {"zone": "UTC"}}'}
    prompts = [
        Prompt(Question(0, ("Yes.",), {}), tuple(BEFORE), system="Be brief."),
        Prompt(Question(1, ("",), {}), (LOOKED[0], called, {"role": "observation", "content": "12:00"}), tools=tools),
    ]
    sides = [JudgedResponse("It is 8.", True, 1.0), JudgedResponse("It is 3.", True, 0.0)]
    rows, _ = ranking_rows([JudgedPrompt(prompt, sides, Pair(0, 1)) for prompt in prompts])
    meta, _ = prepared(rows, RANDOM, "chat_template.default", **QWEN)
    first, second = texts(words, meta)
    assert first[0].startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHow many legs")
    assert "<tools>" in second[0]
    assert f"{CALLED}<|im_end|>\n<|im_start|>user\n<tool_response>\n12:00\n</tool_response><|im_end|>" in second[0]
    for _, chosen, rejected in (first, second):
        assert chosen.removeprefix("</think>\n\n") == "It is 8.<|im_end|>"
        assert rejected.removeprefix("</think>\n\n") == "It is 3.<|im_end|>"
