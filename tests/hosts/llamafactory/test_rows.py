"""Rows in the forms that data sets have: trained as they were meant, or left out with a reason and a number."""

import contextlib
import io
import json
from pathlib import Path

import pytest
from llamafactory.data import converter, get_dataset, get_template_and_fix_tokenizer, loader
from llamafactory.hparams import DataArguments, ModelArguments
from transformers import Seq2SeqTrainingArguments

from sepo.errors import SepoError
from sepo.hosts.llamafactory.checks import check_datasets
from sepo.hosts.llamafactory.conversations import conversations_kept
from sepo.hosts.llamafactory.messages import MESSAGES, register
from sepo.hosts.llamafactory.response_tokens import PolicyResponses
from sepo.hosts.llamafactory.rows import THOUGHT_REMOVED, aligned_rows, counted_rows
from sepo.hosts.llamafactory.user_scores import carried_scores
from sepo.text.conversations import CONVERSATION, QUOTED, READ
from sepo.training.row_losses import RowLosses
from tests.support import tiny
from tests.support.recipes import BIN, ROOT, run, sepo_recipe, sepo_train

SHARED = Path(__file__).parents[4] / "shared" / "data"
IGNORE = -100
CLOCK = {
    "type": "function",
    "function": {
        "name": "clock", "description": "The time.",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}},
    },
}  # fmt: skip
CALL = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "UTC"}'}}


def user(text):
    return {"role": "user", "content": text}


def says(text, **more):
    return {"role": "assistant", "content": text, **more}


def both(chosen, rejected, *before, **more):
    """Return a row of whole conversations, as the data sets of the hub have it."""
    return {"chosen": [*before, chosen], "rejected": [*before, rejected], **more}


def save(folder, rows, *, name="d", **entry):
    info = {"file_name": f"{name}.json", "formatting": MESSAGES, "ranking": True, **entry}
    path = folder / "dataset_info.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, name: info}))
    (folder / f"{name}.json").write_text(json.dumps(rows))


@pytest.fixture(scope="module")
def words():
    return tiny.tokenizer()


@pytest.fixture
def prepared(tmp_path, words):
    """Return a function that tokenizes the data sets of ``tmp_path`` as a stage does: data sets and losses."""

    def make(*, template="chatml", carry=False, counted=True, **options):
        arguments = DataArguments(
            **{"dataset": "d", "dataset_dir": str(tmp_path), "template": template, "cutoff_len": 2048, **options}
        )
        training = Seq2SeqTrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, report_to=[], seed=3)
        found, losses = get_template_and_fix_tokenizer(words, arguments), RowLosses()
        carried = carried_scores(template=found) if carry else contextlib.nullcontext()
        counting = counted_rows(losses, template=found) if counted else contextlib.nullcontext()
        with carried, counting, contextlib.redirect_stdout(io.StringIO()):
            datasets = get_dataset(
                found, ModelArguments(model_name_or_path="-"), arguments, training, stage="rm", tokenizer=words
            )
        return datasets, losses

    return make


def texts(words, row, side="chosen"):
    """Return prompt and response of a tokenized row as text."""
    start = row[f"{side}_labels"].count(IGNORE)
    ids = row[f"{side}_input_ids"]
    return words.decode(ids[:start]), words.decode(ids[start:])


def happened(losses, name="train"):
    return {(loss["what"], loss["reason"]): loss["rows"] for loss in losses.record()[name]["losses"]}


def real_rows():
    """Return conversations with two responses in ShareGPT's form: real ones if they are available."""
    path = SHARED / "dpo_en_demo.json"
    return json.loads(path.read_text())[:60] if path.is_file() else tiny.pairs(24)


def as_messages(row):
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    turns = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
    ends = {side: says(row[side]["value"]) for side in ("chosen", "rejected")}
    return {side: [*turns, end] for side, end in ends.items()}


SHAREGPT = {"formatting": "sharegpt", "columns": {"messages": "conversations", "chosen": "chosen",
                                                  "rejected": "rejected"}}  # fmt: skip


def test_whole_conversations_are_the_same_rows_as_in_the_hosts_format(tmp_path, prepared):
    rows = real_rows()
    save(tmp_path, rows, name="host", **SHAREGPT)
    save(tmp_path, [as_messages(row) for row in rows], name="lists")
    with_prompt = [
        {**row, "prompt": row["chosen"][0]["content"] if len(row["chosen"]) == 2 else None}
        for row in map(as_messages, rows)
    ]
    save(tmp_path, with_prompt, name="prompts")
    host = prepared(dataset="host", counted=False)[0]["train_dataset"]
    assert len(host) == len(rows)
    for name in ("host", "lists", "prompts"):
        made, losses = prepared(dataset=name)
        assert made["train_dataset"][:] == host[:], name
        assert losses.record()["train"] == {"given": len(rows), "used": len(rows), "losses": []}


def test_messages_after_a_prompt(tmp_path, prepared, words):
    """The form of TRL: a list of turns as prompt, and the last turn of each side."""
    row = {"prompt": [{"role": "system", "content": "Be brief."}, user("Sky?")], "chosen": [says("Blue.")],
           "rejected": [says("Red.")]}  # fmt: skip
    save(tmp_path, [row])
    (made,) = prepared()[0]["train_dataset"]
    prompt = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nSky?<|im_end|>\n<|im_start|>assistant\n"
    assert texts(words, made) == (prompt, "Blue.<|im_end|>\n")
    assert texts(words, made, "rejected") == (prompt, "Red.<|im_end|>\n")


AGENT = [
    both(says("Noon."), says("Night."), user("Time?"), says(None, tool_calls=[CALL]),
         {"role": "tool", "content": "12:00"}, tools=[CLOCK]),
    both(says(None, tool_calls=[CALL]), says("I do not know."), user("Time?"), tools=[CLOCK]),
    both(says("I look.", tool_calls=[CALL]), says("No."), user("Time?"), tools=json.dumps([CLOCK])),
]  # fmt: skip

CALLED = {
    "default": 'Action: clock\nAction Input: {"zone": "UTC"}',
    "llama3": '{"name": "clock", "parameters": {"zone": "UTC"}}',
    "qwen": '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>',
    "qwen3": '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>',
}
RESULT = {
    "default": "Human: 12:00",
    "llama3": "ipython<|end_header_id|>\n\n12:00",
    "qwen": "<tool_response>\n12:00\n</tool_response>",
    "qwen3": "<tool_response>\n12:00\n</tool_response>",
}


@pytest.mark.parametrize("template", CALLED)
def test_tools_in_the_templates_own_format(tmp_path, prepared, words, template):
    for index, row in enumerate(AGENT):  # apart: a column has one type
        save(tmp_path, [row], name=f"d{index}")
    rows = [prepared(template=template, dataset=f"d{index}")[0]["train_dataset"][0] for index in range(3)]
    after_result, calls, looks = rows
    prompt, response = texts(words, after_result)
    assert CALLED[template] in prompt
    assert prompt.index(CALLED[template]) < prompt.index(RESULT[template])
    assert "The time." in prompt
    assert "Noon." in response
    assert CALLED[template] in texts(words, calls)[1]
    assert "I do not know." in texts(words, calls, "rejected")[1]
    assert f"I look.\n{CALLED[template]}" in texts(words, looks)[1]


@pytest.mark.parametrize("template", ["llama3", "qwen3"])
def test_reasoning_is_part_of_the_response(tmp_path, prepared, words, template):
    rows = [both(says("Blue.", **{key: "Air scatters."}), says("Red."), user("Sky?"))
            for key in ("reasoning_content", "reasoning", "thinking")]  # fmt: skip
    save(tmp_path, rows)
    for row in prepared(template=template)[0]["train_dataset"]:
        assert texts(words, row)[1].startswith("<think>\nAir scatters.\n</think>\n\nBlue.")
        assert "Air scatters." not in texts(words, row, "rejected")[1]


def test_several_results_of_tools_are_one_turn(tmp_path, prepared, words):
    results = [{"role": "tool", "content": text} for text in ("12:00", "13:00")]
    row = both(says("Noon."), says("No."), user("Time?"), says(None, tool_calls=[CALL, CALL]), *results, tools=[CLOCK])
    save(tmp_path, [row])
    expected = {
        "qwen": "<tool_response>\n12:00\n</tool_response>\n<tool_response>\n13:00\n</tool_response>",
        "llama3": "ipython<|end_header_id|>\n\n12:00\n13:00<|eot_id|>",
    }
    for template, text in expected.items():
        assert text in texts(words, prepared(template=template)[0]["train_dataset"][0])[0]


@pytest.mark.parametrize("template", ["default", "llama3", "qwen", "llama2"])
def test_the_text_of_a_response_that_calls_tools(tmp_path, prepared, words, template):
    """An oracle with another tokenizer reads it as it is trained, so that its scores can be projected."""
    save(tmp_path, AGENT[1:2])
    arguments = DataArguments(template=template, cutoff_len=2048)
    with conversations_kept(True, READ):
        (row,) = prepared(template=template)[0]["train_dataset"]
    with conversations_kept(True, QUOTED):
        (quoted,) = prepared(template=template)[0]["train_dataset"]
    conversation = json.loads(row[CONVERSATION])
    assert conversation["answers"] == [CALLED.get(template, CALLED["default"]), "I do not know."]
    assert json.loads(quoted[CONVERSATION])["answers"][0] == '[{"name": "clock", "arguments": {"zone": "UTC"}}]'
    kept = [label for label in row["chosen_labels"] if label != IGNORE]
    responses = PolicyResponses(
        get_template_and_fix_tokenizer(words, arguments), words, processor=None, data_args=arguments
    )
    assert responses.place(conversation, kept, "chosen") is not None


@pytest.mark.parametrize("thinking", [True, False])
def test_the_text_of_a_response_without_the_thought_that_the_template_removes(tmp_path, prepared, words, thinking):
    """What an oracle with another tokenizer reads, and what spans count, is what is trained."""
    thought = {"reasoning_content": "It is UTC."}
    row = both(says(None, tool_calls=[CALL], **thought), says("Noon.", **thought), user("Time?"), tools=[CLOCK])
    whole = ["<think>\nIt is UTC.\n</think>\n\n" if thinking else "", CALLED["qwen"], "Noon."]
    answers = [whole[0] + whole[1], whole[0] + whole[2]]
    spans = {
        f"{side}_spans": [{"start": len(text) - 5, "end": len(text), "weight": 1.0}]
        for side, text in zip(("chosen", "rejected"), answers, strict=True)
    }
    save(tmp_path, [{**row, **spans}])
    options = {"template": "qwen3", "enable_thinking": thinking}
    with conversations_kept(True, READ):
        made, losses = prepared(carry=True, **options)
    (row,) = made["train_dataset"]
    assert json.loads(row[CONVERSATION])["answers"] == answers
    for side, text in zip(("chosen", "rejected"), answers, strict=True):
        response = [label for label in row[f"{side}_labels"] if label != IGNORE]
        scored = [token for token, score in zip(response, row[f"{side}_scores"], strict=True) if score]
        assert text[-5:] in words.decode(scored)
        assert len(scored) <= 5
    assert happened(losses) == ({} if thinking else {("changed", THOUGHT_REMOVED): 1})
    after_end = [{**span, "end": span["end"] + 1} for span in spans["chosen_spans"]]
    save(tmp_path, [{**both(says(None, tool_calls=[CALL], **thought), says("Noon."), user("Time?"), tools=[CLOCK]),
                     **spans, "chosen_spans": after_end}])  # fmt: skip
    with pytest.raises(SepoError, match=f"expected 0 <= start < end <= {len(answers[0])}, the length"):
        prepared(carry=True, **options)


OPENAI = {
    "formatting": "openai",
    "columns": {"messages": "messages", "chosen": "chosen", "rejected": "rejected", "tools": "tools"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
             "observation_tag": "tool", "function_tag": "function", "system_tag": "system"},
}  # fmt: skip


def test_rows_in_openais_format(tmp_path, prepared, words):
    """The host adds a system prompt, drops the row that ends with a result, and raises for the response that calls."""
    rows = [
        {"messages": row["chosen"][:-1], "chosen": row["chosen"][-1], "rejected": row["rejected"][-1],
         "tools": json.dumps([CLOCK]) if index else ""}
        for index, row in enumerate([both(says("Blue."), says("Red."), user("Sky?")), *AGENT])
    ]  # fmt: skip
    save(tmp_path, rows, **OPENAI)
    made, losses = prepared(template="qwen", default_system="Own.")
    assert losses.record()["train"] == {"given": 4, "used": 4, "losses": []}
    plain, after_result, calls, _ = made["train_dataset"]
    assert texts(words, plain)[0].startswith("<|im_start|>system\nOwn.<|im_end|>\n<|im_start|>user\nSky?")
    assert texts(words, after_result)[1] == "Noon.<|im_end|>\n"
    assert CALLED["qwen"] in texts(words, calls)[1]


def test_numbers_and_reasons_of_the_rows_that_are_left_out(tmp_path, prepared, words):
    turn = {"from": "human", "value": "Q?"}
    end = {"from": "gpt", "value": "A."}
    rows = [{"conversations": [turn], "chosen": end, "rejected": {**end, "value": "B."}} for _ in range(6)]
    rows[1]["conversations"] = [turn, turn]
    rows[2]["conversations"] = [{**turn, "from": "critic"}]
    rows[3]["chosen"] = {"from": "gpt", "value": None}
    rows[4]["conversations"] = [turn, turn]
    save(tmp_path, rows, **SHAREGPT)
    made, losses = prepared()
    assert happened(losses) == {
        ("skipped", "a turn of user follows one of user"): 2,
        ("skipped", "the prompt has a message with the role 'critic'"): 1,
        ("skipped", "chosen has a message without content"): 1,
    }
    assert [losses.record()["train"][name] for name in ("given", "used")] == [6, 2]
    assert losses.record()["train"]["losses"][0]["example"] == "Q?"
    assert len(made["train_dataset"]) == 2
    assert not [name for name in made["train_dataset"].column_names if name.startswith("_")]


def test_the_validation_split_does_not_depend_on_rows_that_are_left_out(tmp_path, prepared):
    """Stored scores are found by the rows of a part, and the host splits before it drops rows."""
    rows = tiny.pairs(24)
    for row in rows[::5]:
        row["conversations"] = row["conversations"] * 2
    save(tmp_path, rows, **SHAREGPT)
    made, losses = prepared(val_size=0.25)
    host, _ = prepared(val_size=0.25, counted=False)
    for role in ("train_dataset", "eval_dataset"):
        assert made[role]["chosen_input_ids"][:] == host[role]["chosen_input_ids"][:]
    numbers = losses.record()
    assert numbers["train"]["given"] + numbers["eval"]["given"] == 24
    assert numbers["train"]["used"] + numbers["eval"]["used"] == 19


def test_several_evaluation_sets_are_counted_by_their_names(tmp_path, prepared):
    rows = tiny.pairs(4)
    save(tmp_path, rows, **SHAREGPT)
    rows[0]["conversations"] = []
    save(tmp_path, rows, name="e", **SHAREGPT)
    _, losses = prepared(eval_dataset="e,d", eval_on_each_dataset=True)
    assert {name: numbers["used"] for name, numbers in losses.record().items()} == {
        "train": 4,
        "eval e": 3,
        "eval d": 4,
    }


ALPACA = {"formatting": "alpaca", "columns": {"prompt": "q", "query": "more", "history": "before", "chosen": "chosen",
                                              "rejected": "rejected", "system": "system"}}  # fmt: skip


def test_rows_in_alpacas_format(tmp_path, prepared, words):
    good = {"q": "Sky?", "more": "", "before": [["Hello", "Hi"]], "chosen": "Blue.", "rejected": "Red.", "system": ""}
    rows = [good, {**good, "chosen": None}, {**good, "before": [["Hello"]]}, {**good, "before": None, "system": None}]
    save(tmp_path, rows, **ALPACA)
    made, losses = prepared()
    assert happened(losses) == {
        ("skipped", "chosen is missing; text is expected"): 1,
        ("skipped", "before is not a list of pairs of texts"): 1,
    }
    assert "Hello" in texts(words, made["train_dataset"][0])[0]
    numbers = [{**good, "q": index} for index in range(3)]
    save(tmp_path, numbers, **ALPACA)
    with pytest.raises(SepoError, match="no row can be used: in 3 rows q is a number; text is expected"):
        prepared()


def test_empty_prompts_are_used_and_counted(tmp_path, prepared, caplog):
    row = {"q": "", "more": None, "before": None, "chosen": "Blue.", "rejected": "Red.", "system": None}
    save(tmp_path, [row, {**row, "q": "Sky?"}], **ALPACA)
    _, losses = prepared()
    assert losses.record()["train"] == {"given": 2, "used": 2, "losses": []}
    assert "train: in 1 rows the prompt is empty; they are used as given." in caplog.text


def test_a_system_prompt_that_is_not_used_is_counted(tmp_path, prepared, words):
    row = both(says("Blue."), says("Red."), {"role": "system", "content": "Turn."}, user("Sky?"), system="Column.")
    save(tmp_path, [row])
    made, losses = prepared()
    assert "Turn." in texts(words, made["train_dataset"][0])[0]
    assert list(happened(losses).values()) == [1]
    assert next(iter(happened(losses)))[0] == "changed"


@pytest.mark.parametrize("tools", ["no JSON", '[{"name": "f"}]'])
def test_tools_that_the_template_cannot_write(tmp_path, prepared, tools):
    rows = [both(says("A"), says("B"), user("Q"), tools=text) for text in ("", tools)]
    save(tmp_path, rows)
    _, losses = prepared(template="default")
    assert [reason.split(" (")[0] for _, reason in happened(losses)] == ["the template cannot write its tools"]


def test_scores_of_the_user_stay_with_their_rows(tmp_path, prepared):
    """Spans of a row that is left out are not checked: its responses are not read."""
    span = [{"start": 0, "end": 3, "weight": 1.0}]
    rows = [both(says(f"Yes {i}."), says(f"No {i}."), user("Q?"), chosen_spans=span, rejected_spans=span)
            for i in range(3)]  # fmt: skip
    rows[1]["chosen"] = [says("Yes.")]
    save(tmp_path, rows)
    made, losses = prepared(carry=True)
    assert losses.record()["train"]["used"] == len(made["train_dataset"]) == 2
    assert all(sum(row["chosen_scores"]) > 0 for row in made["train_dataset"])


def test_workers_give_the_same_numbers(tmp_path, prepared):
    rows = [both(says(f"A{i}"), says("B"), *([user("Q")] * (1 + i % 2))) for i in range(8)]
    save(tmp_path, rows)
    for _ in range(2):  # the second time from the cache
        made, losses = prepared(preprocessing_num_workers=2)
        assert losses.record()["train"]["used"] == len(made["train_dataset"]) == 4


def test_a_data_set_on_the_hub(tmp_path, prepared, words):
    """A directory with data files is loaded as a repository of the hub is, by the same function."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "repository" / "data" / "train_prefs-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    rows = [both(says("Blue."), says("Red."), user("Sky?"), prompt="Sky?", score_chosen=9.0, messages=[user("Sky?")])]
    pq.write_table(pa.Table.from_pylist(rows), path)
    (entry,) = json.loads((ROOT / "yaml_examples" / "hub_messages" / "dataset_info.json").read_text()).values()
    entry["hf_hub_url"] = str(tmp_path / "repository")
    (tmp_path / "dataset_info.json").write_text(json.dumps({"d": entry}))
    check_datasets({"dataset": "d", "dataset_dir": str(tmp_path)})
    assert texts(words, prepared()[0]["train_dataset"][0])[1] == "Blue.<|im_end|>\n"


def test_messages_as_json_text(tmp_path, prepared, words):
    row = both(says("Blue."), says("Red."), user("Sky?"))
    save(tmp_path, [{side: json.dumps(messages) for side, messages in row.items()}])
    (made,) = prepared()[0]["train_dataset"]
    assert texts(words, made, "rejected")[1] == "Red.<|im_end|>\n"


@pytest.mark.parametrize("lines", [False, True])
def test_a_column_with_several_types(tmp_path, prepared, lines):
    parts = [{"type": "text", "text": "A"}]
    rows = [both(says("A"), says("B"), user("Q")), both(says(None), says("B"), user("Q")),
            both(says(parts), says("B"), user("Q"))]  # fmt: skip
    save(tmp_path, rows)
    if lines:
        (tmp_path / "d.json").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SepoError) as caught:
        prepared()
    assert "d.json cannot be loaded: chosen[].content is text in row 0 and a list in row 2" in str(caught.value)


def test_a_split_that_does_not_exist(tmp_path, prepared):
    save(tmp_path, [both(says("A"), says("B"), user("Q"))], split="test")
    with pytest.raises(SepoError, match=r'd\.json cannot be loaded: ValueError: Unknown split "test"') as caught:
        prepared()
    assert "\n" not in str(caught.value)


def test_the_host_is_as_before_afterwards(tmp_path, prepared):
    before = (loader.align_dataset, loader.load_dataset, loader.split_dataset, converter.get_dataset_converter)
    save(tmp_path, [{"chosen": 1, "rejected": 2}])
    with pytest.raises(SepoError):
        prepared()
    assert before == (
        loader.align_dataset, loader.load_dataset, loader.split_dataset, converter.get_dataset_converter
    )  # fmt: skip


def test_the_hosts_own_stages_read_the_format(tmp_path, prepared, words):
    """`sepo train` registers it for the base and the oracle of a pipeline, too."""
    register()
    register()
    rows = [both(says("Blue."), says("Red."), user("Sky?")), both(says(1), says("Red."), user("Sky?"))]
    save(tmp_path, [rows[0], both(says("Blue."), says("Red."), user("Sky?"), user("Sky?"))])
    made, _ = prepared(counted=False)
    assert [texts(words, row)[1] for row in made["train_dataset"]] == ["Blue.<|im_end|>\n"]
    save(tmp_path, [{"messages": rows[0]["chosen"]}], ranking=False)
    arguments = DataArguments(dataset="d", dataset_dir=str(tmp_path), template="chatml")
    training = Seq2SeqTrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, report_to=[])
    template = get_template_and_fix_tokenizer(words, arguments)
    with contextlib.redirect_stdout(io.StringIO()):
        made = get_dataset(
            template, ModelArguments(model_name_or_path="-"), arguments, training, stage="sft", tokenizer=words
        )
    (row,) = made["train_dataset"]
    assert words.decode([label for label in row["labels"] if label != IGNORE]) == "Blue.<|im_end|>\n"


def test_the_sample_of_a_pipeline(tmp_path):
    from sepo.hosts.llamafactory.sample import write_sample

    save(tmp_path, [*AGENT[:2], both(says("A"), says("B"))])
    losses = RowLosses()
    recipe = {"dataset": "d", "dataset_dir": str(tmp_path), "template": "qwen"}
    assert write_sample(recipe, ratio=1.0, folder=tmp_path / "sample", losses=losses) == 2
    assert happened(losses) == {("skipped", "there is no prompt"): 1}
    written = json.loads((tmp_path / "sample" / "oracle_pairs.json").read_text())
    assert [turn["from"] for turn in written[0]["conversations"]] == ["human", "function_call", "observation"]
    assert written[1]["chosen"]["from"] == "function_call"
    assert json.loads(written[1]["tools"]) == [CLOCK]


def test_marks_do_not_leave_their_context(tmp_path):
    with aligned_rows():
        assert loader.align_dataset.__module__ == "sepo.hosts.llamafactory.rows"
    assert loader.align_dataset.__module__ == "llamafactory.data.converter"


def test_a_run_and_its_responses(world, tmp_path):
    """`sepo show` shows the responses that the author wrote, and the run says what it left out."""
    rows = [both(says(f"It has {i} legs."), says(f"It has {i} wings."), user(f"Creature {i}?")) for i in range(12)]
    rows[3]["chosen"] = [says("It has 3 legs.")]
    (tmp_path / "data").mkdir()
    save(tmp_path / "data", rows)
    recipe = sepo_recipe(world, tmp_path / "out", dataset="d", dataset_dir=str(tmp_path / "data"), max_steps=2)
    done = sepo_train(recipe, tmp_path)
    assert "one of chosen and rejected is a whole conversation, the other one is not" in done.stderr + done.stdout
    shown = run([BIN / "sepo", "show", "out", "--rows", "2"], cwd=tmp_path, expect=None)
    assert "legs." in shown.stdout, shown.stderr
