"""Scores from other sources than the policy's tokens: the user's, and those of an oracle with another tokenizer."""

import json
import logging

import numpy as np
import pytest

from sepo.credit.measures import auroc
from sepo.errors import SepoError
from sepo.hosts.axolotl.conversations import conversation
from sepo.hosts.axolotl.response_tokens import PolicyResponses
from sepo.runs.log_reader import read_log
from tests.support import axo, foreign, tiny

SIDES = ("chosen", "rejected")


FILE = {"token_scorer": "file"}
ROWS = axo.messages(tiny.pairs(8))


def tokens_of(words, row, side):
    return words(row[side]["content"] + "<|im_end|>", add_special_tokens=False)["input_ids"]


def test_the_users_scores_are_assigned_to_their_tokens(prepared, words):
    """With the id of each token as its score, so that every score identifies its token."""
    rows = [{**row, **{f"{side}_scores": tokens_of(words, row, side) for side in SIDES}} for row in ROWS]
    meta, _ = prepared(rows, FILE)
    assert len(meta.train_dataset) == len(rows)
    for row in meta.train_dataset:
        for side in SIDES:
            assert row[f"{side}_scores"] == axo.response(row, side)


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
                scores, tokens = row[f"{side}_scores"], axo.response(row, side)
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
            assert len(scores) == len(axo.response(row, side))
            assert sum(scores) == pytest.approx(sum(own[f"{side}_scores"]), abs=1e-4)
            assert max(map(abs, scores)) > 0.01


def test_oracles_with_different_tokenizers_are_averaged_in_the_policys_tokens(root, prepared, others):
    """The mean of both scores of each token; step means have the same sum."""
    own = {"oracle_model": str(root / "oracle"), "oracle_base_model": str(root / "base")}
    named = [{name: each[name] for name in own} for each in (own, others)]
    alone = [prepared(ROWS, {**dict.fromkeys(own), "oracles": [each]})[0].train_dataset for each in named]
    both = {**dict.fromkeys(own), "oracles": named}
    mean, steps = (prepared(ROWS, {**both, "oracle_scores": made})[0].train_dataset for made in ("ratio", "step_mean"))
    for first, second, averaged, stepped in zip(*alone, mean, steps, strict=True):
        for side in SIDES:
            expected = (np.array(first[f"{side}_scores"]) + np.array(second[f"{side}_scores"])) / 2
            np.testing.assert_allclose(averaged[f"{side}_scores"], expected, atol=1e-6)
            assert sum(stepped[f"{side}_scores"]) == pytest.approx(expected.sum(), abs=1e-4)
            assert len(set(stepped[f"{side}_scores"])) < len(expected)


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


@pytest.mark.parametrize("own", [True, False], ids=["policys-tokens", "other-tokens"])
def test_an_oracle_is_measured_on_marked_rows_before_training(root, prepared, others, words, tmp_path, own):
    """The AUROC of the marked words' tokens, in the run's template, equals that of the scores of the same rows."""
    rows = axo.messages(tiny.pairs(30))
    marked = [{**row, "rejected_error_spans": spans_of(row["rejected"]["content"], ("wings", 1.0))} for row in rows]
    file = axo.save_rows(tmp_path / "marked.jsonl", marked)
    named = {"oracle_model": str(root / "oracle"), "oracle_base_model": str(root / "base")} if own else others
    meta, _ = prepared(rows, {**named, "credit_data": str(file)})
    found = read_log(tmp_path / "out").scores
    assert set(found["scores"]) == {"train"}
    assert (found["credit"]["source"], found["credit"]["responses"]) == (str(file), 30)
    expected = []
    for row, scored in zip(marked, meta.train_dataset, strict=True):
        (span,) = row["rejected_error_spans"]
        conversation = {"answers": ["", row["rejected"]["content"]]}
        offsets = PolicyResponses(words).place(conversation, axo.response(scored, "rejected"), "rejected").offsets
        wrong = [stop > span["start"] and start < span["end"] for start, stop in offsets]
        expected.append(auroc(np.array(scored["rejected_scores"]), np.array(wrong)))
    assert found["credit"]["auroc"]["mean"] == pytest.approx(np.mean(expected), abs=1e-6)


def test_marked_rows_that_cannot_be_read_are_refused_with_the_config(loaded):
    with pytest.raises(SepoError, match=r"credit_data: 'nowhere\.json' is not a file"):
        loaded(ROWS, {"oracle_model": "o", "oracle_base_model": "b", "credit_data": "nowhere.json"})


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
