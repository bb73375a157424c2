"""Pairs are encoded as the host encodes them; without a setting for thoughts, each response after its own prompt."""

import copy
import itertools
import json
import random

import pytest
from datasets import Dataset
from llamafactory.data import get_template_and_fix_tokenizer, loader
from llamafactory.data.processor import PairwiseDatasetProcessor
from llamafactory.hparams import DataArguments

from sepo.hosts.llamafactory.conversations import conversations_kept
from sepo.hosts.llamafactory.pair_encoding import CUT, PairProcessor, pairs_encoded, without_cuts
from sepo.hosts.llamafactory.response_tokens import written_by_template
from sepo.text.conversations import CONVERSATION
from sepo.training.row_losses import RowLosses
from tests.support import tiny
from tests.support.rows import prepared

SIDES = ("chosen", "rejected")
IGNORE = -100
THOUGHT = "<think>\nTwo and two.\n</think>\n\n"
EMPTY = "<think>\n\n</think>\n\n"


def setting(template, *, thinking, cutoff=2**30):
    """Return the host's template, tokenizer and arguments."""
    words = tiny.tokenizer()
    arguments = DataArguments(template=template, cutoff_len=10, enable_thinking=thinking)
    arguments.cutoff_len = cutoff
    return get_template_and_fix_tokenizer(words, arguments), words, arguments


def examples(responses, prompts=("What is 2 + 2?",)):
    rows = list(itertools.product(prompts, responses))
    return {
        "_prompt": [[{"role": "user", "content": prompt}] for prompt, _ in rows],
        "_response": [[{"role": "assistant", "content": text} for text in pair] for _, pair in rows],
        **{f"_{name}": [""] * len(rows) for name in ("system", "tools")},
        **{f"_{name}": [None] * len(rows) for name in ("images", "videos", "audios")},
    }


def encoded(kind, data, template, words, arguments):
    template, arguments = copy.deepcopy(template), copy.deepcopy(arguments)
    return dict(kind(template, words, None, arguments).preprocess_dataset(copy.deepcopy(data)))


def random_pairs(count, seed):
    draw = random.Random(seed)
    starts = ["", THOUGHT, EMPTY, "<think>half ", "\n"]

    def text():
        return draw.choice(starts) + " ".join(draw.choice(["Paris", "8 legs", "It is.", "\n"]) for _ in range(9))

    return [(text(), text()[: draw.randrange(60)]) for _ in range(count)]


@pytest.mark.parametrize("template", ["qwen3", "qwen", "llama3", "glm4_moe", "alpaca"])
@pytest.mark.parametrize("thinking", [True, False, None])
def test_rows_are_those_of_the_host(template, thinking):
    """With thinking on or off, and for templates without thoughts, bit for bit."""
    for cutoff in (8, 20, 40, 70, 1000):
        parts = setting(template, thinking=thinking, cutoff=cutoff)
        pairs = random_pairs(30, cutoff)
        if thinking is None and template in ("qwen3", "glm4_moe"):  # both sides with a thought, or both without
            pairs = [(first, second) for first, second in pairs if ("think>" in first) == ("think>" in second)]
        assert len(pairs) > 5
        data = examples(pairs, prompts=("What is 2 + 2?", "Name the capital of France. " * 4))
        made, host = (encoded(kind, data, *parts) for kind in (PairProcessor, PairwiseDatasetProcessor))
        assert len(made.pop(CUT)) == len(made["chosen_labels"])
        assert made == host


@pytest.mark.parametrize("template", ["qwen3", "glm4_moe"])
@pytest.mark.parametrize("texts", [(f"{THOUGHT}Four.", "Five."), ("Four.", f"{THOUGHT}Five.")], ids=str)
def test_without_a_setting_each_response_follows_its_own_prompt(template, texts):
    parts = setting(template, thinking=None)
    made, host = (encoded(kind, examples([texts]), *parts) for kind in (PairProcessor, PairwiseDatasetProcessor))
    for side, text in zip(SIDES, texts, strict=True):
        alone = encoded(PairwiseDatasetProcessor, examples([(text, text)]), *parts)
        for name in ("input_ids", "labels", "attention_mask"):
            assert made[f"{side}_{name}"] == alone[f"chosen_{name}"]
    assert made["chosen_input_ids"] == host["chosen_input_ids"]
    assert made["rejected_input_ids"] != host["rejected_input_ids"]  # the host's are to be mended
    both = ((made[f"{side}_input_ids"][0], made[f"{side}_labels"][0]) for side in SIDES)
    prompts = [parts[1].decode(ids[: labels.count(IGNORE)]) for ids, labels in both]
    assert [EMPTY.strip() in prompt for prompt in prompts] == [THOUGHT not in text for text in texts]


@pytest.mark.parametrize("cutoff", [12, 30, 40, 60])
@pytest.mark.parametrize("thinking", [True, None])
def test_truncation_leaves_the_beginning_of_each_prompt_and_response(cutoff, thinking):
    pairs = random_pairs(30, cutoff)
    data = examples(pairs, prompts=("What is 2 + 2?", "Name the capital of France. " * 4))
    whole = encoded(PairProcessor, data, *setting("qwen3", thinking=thinking))
    made = encoded(PairProcessor, data, *setting("qwen3", thinking=thinking, cutoff=cutoff))
    assert whole[CUT] == [[0, 0, 0]] * 60
    lost = []
    for row, cut in enumerate(made[CUT]):
        expected = []
        for side in SIDES:
            prompt, response = made[f"{side}_labels"][row].count(IGNORE), made[f"{side}_labels"][row][:]
            response = [label for label in response if label != IGNORE]
            all_labels, all_ids = whole[f"{side}_labels"][row], whole[f"{side}_input_ids"][row]
            before, own = all_ids[: all_labels.count(IGNORE)], all_ids[all_labels.count(IGNORE) :]
            assert made[f"{side}_input_ids"][row] == [*before[:prompt], *own[: len(response)]]
            assert len(made[f"{side}_input_ids"][row]) <= cutoff
            expected.append((len(before) - prompt, len(own) - len(response)))
        assert cut == [max(prompt for prompt, _ in expected), *(response for _, response in expected)]
        lost.append(any(cut))
    assert any(lost)
    assert cutoff < 60 or not all(lost)  # and rows that are not cut are found to be so


def test_rows_that_truncation_cut_are_counted():
    words, losses = tiny.tokenizer(), RowLosses()
    ids = [words.encode(f"Question {index}") for index in range(4)]
    rows = Dataset.from_dict({"chosen_input_ids": ids, CUT: [[0, 0, 0], [3, 0, 0], [2, 0, 9], [0, 1, 0]]})
    kept = without_cuts(rows, name="train", losses=losses, tokenizer=words, cutoff_len=64)
    assert kept.column_names == ["chosen_input_ids"]
    losses.used("train", 4)
    assert losses.record()["train"] == {
        "given": 4,
        "used": 4,
        "losses": [
            {"what": "cut", "reason": "the prompt is cut at cutoff_len 64", "rows": 2, "example": "Question 1"},
            {"what": "cut", "reason": "a response is cut at cutoff_len 64", "rows": 2, "example": "Question 2"},
        ],
    }
    assert without_cuts(kept, name="train", losses=losses, tokenizer=words, cutoff_len=64) is kept


@pytest.mark.parametrize(
    ("template", "thinking", "text", "written"),
    [
        ("qwen3", True, "Four.", [EMPTY, "\n"]),
        ("qwen3", True, f"{THOUGHT}Four.", ["", "\n"]),
        ("qwen3", None, "Four.", ["", "\n"]),  # the empty thought is in the prompt
        ("qwen3", False, f"{THOUGHT}Four.", ["", "\n"]),  # the host removes the thought
        ("qwen", True, "Four.\n", ["", "\n"]),
        ("llama3", True, "Four.", ["", ""]),
        ("gemma", True, "Four.", ["", "\n"]),
        ("glm4_moe", True, "Four.", [f"{EMPTY}\n", ""]),
        ("glm4_moe", True, f"{THOUGHT}Four.", ["\n", ""]),
        ("alpaca", True, "Four.", ["", "\n\n"]),
    ],
)
def test_template_tokens_of_real_templates(template, thinking, text, written):
    parts = setting(template, thinking=thinking)
    found = written_by_template(*parts[:2])
    labels = encoded(PairProcessor, examples([(text, "Five.")]), *parts)["chosen_labels"][0]
    response = [label for label in labels if label != IGNORE]
    flags = found.candidates(response)
    words = parts[1]
    start = flags.index(True)
    assert words.decode(response[:start]) == written[0]
    stop = len(flags) - flags[::-1].index(True)
    assert words.decode(response[stop:]) == written[1]
    assert all(flags[start:stop])
    assert response[stop - 1] in parts[0].get_stop_token_ids(words)  # the end of turn may be selected
    assert bool(found) == (template != "llama3")


@pytest.mark.parametrize("workers", [1, 2])
def test_scores_and_conversations_are_added_to_the_same_rows(tmp_path, workers):
    words = tiny.tokenizer()
    made = [
        {"instruction": f"Question {index}?", "chosen": f"{THOUGHT}Yes.", "rejected": "No. " * 40, "chosen_spans": [],
         "rejected_spans": [{"start": 0, "end": 2, "weight": 1.0}]}
        for index in range(6)
    ]  # fmt: skip
    (tmp_path / "d.json").write_text(json.dumps(made))
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    entry = {"file_name": "d.json", "ranking": True, "columns": columns}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"d": entry}))
    before = loader.PairwiseDatasetProcessor
    options = {"template": "qwen3", "enable_thinking": None, "cutoff_len": 80, "preprocessing_num_workers": workers}
    with pairs_encoded(), conversations_kept(True):
        rows = prepared(tmp_path, words, **options)["train_dataset"]
    assert loader.PairwiseDatasetProcessor is before
    for row in rows:
        starts = [row[f"{side}_labels"].count(IGNORE) for side in SIDES]
        assert starts[1] == starts[0] + len(words.encode(EMPTY, add_special_tokens=False))
        assert row[CUT][:2] == [0, 0]
        assert row[CUT][2] > 0
        assert json.loads(row[CONVERSATION])["answers"] == [made[0]["chosen"], made[0]["rejected"]]
        assert len(row["rejected_scores"]) == len(row["rejected_labels"]) - starts[1]
        assert [score for score in row["rejected_scores"] if score] == [-1.0] * len(words.encode("No"))
