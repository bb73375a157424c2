"""Rows that the host tokenizes for T-REG have an additional column with their conversation."""

import json

import pytest
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer, loader
from llamafactory.hparams import DataArguments, ModelArguments
from transformers import AutoTokenizer

from sepo.errors import SepoError
from sepo.hosts.llamafactory.conversations import conversations_kept
from sepo.text.conversations import CONVERSATION

COLUMNS = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "system": "system"}


class TrainingArguments:
    """The training arguments that the host's loader reads."""

    seed, local_process_index, dataloader_num_workers = 3, 0, 0
    should_log = should_save = predict_with_generate = False

    def main_process_first(self, **_):
        import contextlib

        return contextlib.nullcontext()


def rows():
    made = []
    for index in range(12):
        turns = [{"from": "human", "value": f"Question {index}?"}]
        if index % 3 == 1:
            turns += [{"from": "gpt", "value": "What?"}, {"from": "human", "value": f"Again {index}."}]
        if index % 5 == 4:  # two user turns in a row: the host drops such a row
            turns.append({"from": "human", "value": "Hello?"})
        made.append({
            "conversations": turns, "system": "Be brief." if index % 4 == 0 else "",
            "chosen": {"from": "gpt", "value": f"Yes {index}."}, "rejected": {"from": "gpt", "value": f"No {index}."},
        })  # fmt: skip
    return made


@pytest.fixture
def tokenized(world, tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(rows()))
    entry = {"file_name": "rows.json", "formatting": "sharegpt", "ranking": True, "columns": COLUMNS}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"rows": entry}))
    tokenizer = AutoTokenizer.from_pretrained(world / "policy")

    def make(wanted, **overrides):
        arguments = DataArguments(
            dataset="rows", dataset_dir=str(tmp_path), template="chatml", cutoff_len=64, val_size=0.25, **overrides
        )
        template = get_template_and_fix_tokenizer(tokenizer, arguments)
        with conversations_kept(wanted):
            return tokenizer, get_dataset(
                template, ModelArguments(model_name_or_path="-"), arguments, TrainingArguments(), stage="rm",
                tokenizer=tokenizer,
            )  # fmt: skip

    return make


def test_rows_keep_the_conversation_that_they_were_made_of(tokenized):
    tokenizer, datasets = tokenized(True)
    seen = 0
    for dataset in datasets.values():
        for row in dataset:
            kept = json.loads(row[CONVERSATION])
            text = tokenizer.decode(row["chosen_input_ids"])
            for turn in kept["messages"]:
                assert turn["content"] in text
            assert (kept["system"] == "Be brief.") == ("Be brief." in text)
            assert kept["answers"][0] in text
            assert kept["answers"][1] in tokenizer.decode(row["rejected_input_ids"])
            seen += 1
    assert seen == 12 - 2  # dropped by the host


def test_everything_else_is_the_hosts(tokenized):
    before = loader.PairwiseDatasetProcessor
    _, kept = tokenized(True)
    assert loader.PairwiseDatasetProcessor is before
    _, plain = tokenized(False)
    for role, dataset in plain.items():
        assert CONVERSATION not in dataset.column_names
        assert kept[role].remove_columns([CONVERSATION]).to_dict() == dataset.to_dict()


def test_several_workers_make_the_same_rows(tokenized):
    _, one = tokenized(True)
    _, two = tokenized(True, preprocessing_num_workers=2, overwrite_cache=True)
    assert {role: rows.to_dict() for role, rows in one.items()} == {role: rows.to_dict() for role, rows in two.items()}


def test_rows_with_images_are_refused(world):
    from sepo.hosts.llamafactory.conversations import _conversation

    row = {"_prompt": [{"role": "user", "content": "<image>What is this?"}], "_images": ["a.png"]}
    with pytest.raises(SepoError, match="a row has images, and T-REG's prompts quote text only"):
        _conversation(row)
