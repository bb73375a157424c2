"""Scores from other sources than the policy's tokens: the user's, and those of an oracle with another tokenizer."""

import json
import logging
from importlib import metadata

import pytest
from transformers import AutoTokenizer

from sepo.errors import SepoError
from sepo.hosts.axolotl.conversations import conversation
from sepo.hosts.axolotl.response_tokens import PolicyResponses
from sepo.training.selection_columns import IGNORE_INDEX
from tests.support import axo, foreign, tiny

SIDES = ("chosen", "rejected")


@pytest.fixture
def prepared(root, plugin, tmp_path):
    """Return a function that prepares a run's rows for training, in the order of the file."""
    from axolotl.cli.config import load_cfg
    from axolotl.integrations.base import PluginManager

    from sepo.hosts.axolotl.data import load_pairs

    def make(rows, block, kind="chat_template.default", **more):
        path = axo.save_rows(tmp_path / "rows.jsonl", rows)
        made = axo.config(
            root, tmp_path / "out", rl="sepo", datasets=[{**axo.rows_at(path), "type": kind}],
            shuffle_merged_datasets=False, sepo={"token_scores_dir": str(tmp_path / "scores"), **block}, **more,
        )  # fmt: skip
        made["dataset_prepared_path"] = str(tmp_path / f"prepared-{len(list(tmp_path.iterdir()))}")
        cfg = load_cfg(str(axo.write(made, tmp_path / "config.yaml")))
        resolved = PluginManager.get_instance().plugins[axo.PLUGIN].resolved  # a config creates new plugin instances
        return load_pairs(cfg, resolved.settings, preprocess=False)

    return make


@pytest.fixture(scope="module")
def words(root):
    return AutoTokenizer.from_pretrained(root / "policy")


FILE = {"token_scorer": "file"}
ROWS = axo.messages(tiny.pairs(8))


def response(row, side):
    return [label for label in row[f"{side}_labels"] if label != IGNORE_INDEX]


def tokens_of(words, row, side):
    return words(row[side]["content"] + "<|im_end|>", add_special_tokens=False)["input_ids"]


def test_the_users_scores_are_assigned_to_their_tokens(prepared, words):
    """With the id of each token as its score, so that every score identifies its token."""
    rows = [{**row, **{f"{side}_scores": tokens_of(words, row, side) for side in SIDES}} for row in ROWS]
    meta, _ = prepared(rows, FILE)
    assert len(meta.train_dataset) == len(rows)
    for row in meta.train_dataset:
        for side in SIDES:
            assert row[f"{side}_scores"] == response(row, side)


def spans_of(text, *marked):
    return [{"start": text.index(part), "end": text.index(part) + len(part), "weight": w} for part, w in marked]


def test_the_users_spans_become_scores_of_their_tokens(prepared, words):
    """High in chosen, negated in rejected, zero elsewhere; with a shared prompt, and with whole conversations."""
    rows = []
    for row in ROWS:
        chosen, rejected = row["chosen"]["content"], row["rejected"]["content"]
        rows.append({
            **row,
            "chosen_spans": spans_of(chosen, (chosen.split()[2], 2.0)),
            "rejected_spans": spans_of(rejected, ("wings", 0.5), ("has", 3.0)),
        })  # fmt: skip
    whole = [{**row, **{side: [*row["messages"], row[side]] for side in SIDES}, "messages": None} for row in rows]
    for kind, table in (("chat_template.default", rows), ("chat_template.argilla_chat", whole)):
        meta, _ = prepared(table, FILE, kind=kind)
        assert not [name for name in meta.train_dataset.column_names if "spans" in name or "conversation" in name]
        for index, row in enumerate(meta.train_dataset):
            for side, weights in (("chosen", {2.0}), ("rejected", {-0.5, -3.0})):
                scores, tokens = row[f"{side}_scores"], response(row, side)
                assert len(scores) == len(tokens)
                assert set(scores) - {0.0} == weights
                assert scores[-1] == 0.0  # end of turn
                for span in rows[index][f"{side}_spans"]:
                    marked = [t for t, score in zip(tokens, scores, strict=True) if abs(score) == span["weight"]]
                    text = rows[index][side]["content"][span["start"] : span["end"]]
                    assert text in words.decode(marked)


def test_a_run_trains_on_the_users_spans(root, train, tmp_path):
    """The selected tokens in the run's record are those of the marked words."""
    rows = []
    for row in ROWS:
        spans = {f"{side}_spans": spans_of(row[side]["content"], ("has", 1.0)) for side in SIDES}
        rows.append({**row, **spans})
    path = axo.save_rows(tmp_path / "rows.jsonl", rows)
    block = {**FILE, "select_ratio": 0.05}
    train(axo.config(root, tmp_path / "out", rl="sepo", datasets=[axo.rows_at(path)], sepo=block, max_steps=2))
    recorded = [json.loads(line) for line in (tmp_path / "out" / "_sepo_tokens.jsonl").read_text().splitlines()]
    assert {line["step"] for line in recorded} == {1, 2}
    for line in recorded:
        for side in SIDES:
            response = line[side]
            marked = "".join(response["tokens"][index] for index in response["selected"])
            assert marked.strip()
            assert marked.strip() in "has"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "which hold no scores for token_scorer: file"),
        (
            {"chosen_scores": [0.0], "rejected_scores": [0.0]},
            r"chosen response starts with 'It has.*has 1 numbers, exp",
        ),
        ({"chosen_scores": 3, "rejected_scores": 3}, "chosen_scores is 3, expected a list of numbers"),
        ({"chosen_spans": [{"start": 0, "end": 999, "weight": 1.0}], "rejected_spans": []}, "has start 0 and end 999"),
    ],
    ids=["none", "count", "type", "outside"],
)
def test_scores_that_do_not_fit_are_refused(prepared, columns, message):
    with pytest.raises(SepoError, match=message):
        prepared([{**row, **columns} for row in ROWS], FILE)


def test_spans_need_rows_that_are_conversations(prepared):
    text = [
        {"prompt": "How many?", "chosen": row["chosen"]["content"], "rejected": row["rejected"]["content"],
         "chosen_spans": [], "rejected_spans": []}
        for row in ROWS
    ]  # fmt: skip
    with pytest.raises(SepoError, match=r"only data sets of type chat_template\.default"):
        prepared(text, FILE, kind="chatml.prompt_pairs")


def test_a_response_that_the_host_loses_is_not_trained_on(prepared, words, caplog, monkeypatch):
    """If a template trims its turns, 0.19 would take the last character of the turn as the response."""
    monkeypatch.setattr(logging.getLogger("sepo"), "handlers", [caplog.handler])
    random = {"token_scorer": "random"}
    rows = [dict(row) for row in ROWS]
    rows[1]["chosen"] = {"role": "assistant", "content": " It has 3 legs."}
    rows[4]["rejected"] = {"role": "assistant", "content": ""}
    old = metadata.version("axolotl").startswith("0.19.")
    meta, _ = prepared(rows, random, chat_template="llama3")
    assert len(meta.train_dataset) == (6 if old else 8)
    for row in meta.train_dataset:
        for side in SIDES:
            text = words.decode(response(row, side))
            assert text.startswith(("It has", "<|eot_id|>"))
            assert "dummy" not in text
    assert ("skipped 2 of 8 rows of train, which have lost a response (rows 1, 4)" in caplog.text) is old
    if old:
        with pytest.raises(SepoError, match=r"every row has lost a response.* Strip the responses"):
            prepared(rows[1:2], random, chat_template="llama3")


def test_rows_with_images_are_refused(words):
    from datasets import Dataset

    from sepo.hosts.axolotl.data import tokenized
    from sepo.training.row_losses import RowLosses

    rows = Dataset.from_list([{"chosen": [{"role": "assistant", "content": "A cat."}], "images": ["a.png"]}])
    with pytest.raises(
        SepoError, match="the rows of train have images, and in Axolotl sepo's stages train on text only"
    ):
        tokenized(rows, None, None, tokenizer=words, name="train", losses=RowLosses())


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """An oracle and its base with a tokenizer like Llama 2's."""
    folder = tmp_path_factory.mktemp("others")
    words = foreign.metaspace_bpe()
    tiny.save_model(folder / "base", seed=5, words=words)
    tiny.save_model(folder / "oracle", seed=6, words=words, noise_over=folder / "base")
    return {"oracle_model": str(folder / "oracle"), "oracle_base_model": str(folder / "base")}


def test_an_oracle_with_another_tokenizer_scores_the_policys_tokens(prepared, others, caplog, monkeypatch):
    """The sum of the scores of each response is the oracle's."""
    monkeypatch.setattr(logging.getLogger("sepo"), "handlers", [caplog.handler])  # a run logs to the host's handlers
    meta, stores = prepared(ROWS, others)
    assert "its scores are projected onto the policy's tokens by characters" in caplog.text
    from sepo.score_store import ScoreStore

    store = ScoreStore.at(stores["token_scores"]["train"])
    kept = store.table().to_pylist()
    assert len(kept) == len(ROWS)
    for row, own in zip(meta.train_dataset, kept, strict=True):
        for side in SIDES:
            scores = row[f"{side}_scores"]
            assert len(scores) == len(response(row, side))
            assert sum(scores) == pytest.approx(sum(own[f"{side}_scores"]), abs=1e-4)
            assert max(map(abs, scores)) > 0.01


@pytest.mark.parametrize("text", ["It has 3 legs 🕷️ or more.", "  Led by spaces,\nand lines. ", "x"])
def test_spans_of_whole_truncated_and_trimmed_responses(words, text):
    """Compared with the tokenizer's offsets; a truncated response has the first spans of the whole one, and no end of
    turn."""
    encoded = words(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, known = encoded["input_ids"], encoded["offset_mapping"]
    row = {"answers": ["another", text]}
    place = PolicyResponses(words).place
    whole = place(row, [*ids, words.eos_token_id], "rejected")
    assert whole.end_of_turn == len(ids)
    for (start, stop), (known_start, known_stop) in zip(whole.offsets, known, strict=False):
        assert start <= known_start < known_stop <= stop
    for kept in range(1, len(ids)):
        cut = place(row, ids[:kept], "rejected")
        if "\ufffd" in words.decode(ids[:kept]):  # inside a character: only the whole characters before it have spans
            continue
        assert (cut.offsets, cut.end_of_turn) == (whole.offsets[:kept], None)
    trimmed = words(text.strip(), add_special_tokens=False)["input_ids"]
    moved = place(row, [*trimmed, words.eos_token_id], "rejected")
    assert moved.offsets[0][0] == text.index(text.strip())
    assert max(stop for start, stop in moved.offsets if stop > start) == len(text.rstrip())
    assert place(row, words("Something else.")["input_ids"], "rejected") is None


def test_such_an_oracle_needs_rows_that_are_conversations(prepared, others):
    rows = [{"prompt": "How many?", "chosen": "It has 3.", "rejected": "None."}]
    with pytest.raises(SepoError, match=r"chatml\.prompt_pairs, and an oracle with another tokenizer reads the conv"):
        prepared(rows, others, kind="chatml.prompt_pairs")


def test_a_conversation_is_kept_in_the_form_of_the_other_host():
    """Its text is part of a store's key, so both hosts write the same; tests/hosts/llamafactory has the other half."""
    for row, kept in zip(ROWS, tiny.kept_conversations(8), strict=True):
        assert json.dumps(conversation(row, rows={}, whole=False), ensure_ascii=False) == kept
        whole = {side: [*row["messages"], row[side]] for side in SIDES}
        assert json.dumps(conversation(whole, rows={}, whole=True), ensure_ascii=False) == kept
