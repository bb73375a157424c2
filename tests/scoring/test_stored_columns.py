"""Scores of a data set in the host's columns: rows without a response, joining, and the keys of stores."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset

from sepo.errors import SepoError
from sepo.scoring import oracle as scoring
from sepo.scoring import stored_columns as scored_rows
from sepo.training.trainable_rows import skip_empty_responses
from tests.support.hub import LocalModels
from tests.support.rows import rows


class Words:
    @staticmethod
    def decode(ids, **options):
        return " ".join(map(str, ids))


def test_rows_without_a_response_are_reported_counted_and_skipped(caplog):
    with caplog.at_level(logging.WARNING):
        kept = skip_empty_responses(rows((2, 2), (0, 2), (1, 1), (3, 0)), name="train", tokenizer=Words)
    assert len(kept) == 2
    assert kept["chosen_input_ids"][1] == [1, 2, 3, 12]
    assert "skipped 2 of 4 rows of train" in caplog.text
    assert "Rows 1 ('1 2 3'), 3 (" in caplog.text


def test_nothing_is_logged_if_no_response_is_empty(caplog):
    data = rows((2, 2), (1, 1))
    assert skip_empty_responses(data, name="train", tokenizer=Words) is data
    assert caplog.text == ""


def test_a_data_set_without_any_response_is_refused():
    with pytest.raises(SepoError, match="every row has an empty response after truncation; raise cutoff_len"):
        skip_empty_responses(rows((0, 1), (0, 0)), name="train", tokenizer=Words)


def test_rows_digest_sees_ids_order_and_boundaries():
    first = scored_rows.rows_digest(rows((2, 2), (1, 3)))
    assert first == scored_rows.rows_digest(rows((2, 2), (1, 3)))
    assert first != scored_rows.rows_digest(rows((1, 3), (2, 2)))
    assert first != scored_rows.rows_digest(rows((2, 2), (2, 2)))
    moved = rows((2, 2), (1, 3)).to_dict()
    moved["chosen_labels"][0][2] = 3  # the last token of the prompt becomes part of the response
    assert first != scored_rows.rows_digest(Dataset.from_dict(moved))


@pytest.fixture
def scorer(world, tmp_path):
    from transformers import AutoTokenizer

    from sepo.recipe.model_specs import ModelSpec, OracleSpec

    def make(**overrides):
        values = {
            "oracle": world / "oracle",
            "base": world / "base",
            "template": "chatml",
            "cutoff_len": 128,
            **overrides,
        }
        settings = SimpleNamespace(
            oracle=OracleSpec(oracle=ModelSpec(str(values["oracle"])), base=ModelSpec(str(values["base"]))),
            token_scores_dir=str(tmp_path / "scores"), score_batch_tokens=64, head_chunk_tokens=None,
        )  # fmt: skip
        return scoring.DatasetScorer(
            settings,
            tokenizer=AutoTokenizer.from_pretrained(world / "policy"),
            model_args=LocalModels(compute_dtype=None),
            data_args=SimpleNamespace(template=values["template"], cutoff_len=values["cutoff_len"]),
            training_args=SimpleNamespace(world_size=1, process_index=0, device="cpu", output_dir="out"),
        )

    return make


def fake_scores(monkeypatch, value=0.5):
    def score(self, dataset, start, stop, on_batch):
        counts = {
            side: [len(ids) - 3 for ids in dataset[start:stop][f"{side}_input_ids"]] for side in ("chosen", "rejected")
        }
        return {f"{side}_scores": [[value] * count for count in counts[side]] for side in counts}

    monkeypatch.setattr(scoring.DatasetScorer, "_score", score)


def test_scores_are_joined_row_by_row_and_found_again(scorer, monkeypatch, caplog):
    fake_scores(monkeypatch)
    data = rows((2, 1), (1, 3))
    joined = scorer().attach(data, name="train")
    assert joined["chosen_scores"] == [[0.5, 0.5], [0.5]]
    assert joined["rejected_scores"] == [[0.5], [0.5] * 3]
    assert joined["chosen_input_ids"] == data["chosen_input_ids"]
    with caplog.at_level(logging.INFO):
        scorer().attach(data, name="train")
    assert "nothing to score" in caplog.text


def test_a_damaged_shard_is_scored_again_before_it_is_used(scorer, monkeypatch, caplog):
    fake_scores(monkeypatch)
    data = rows((2, 1), (1, 3))
    first = scorer()
    first.attach(data, name="train")
    path = Path(first.stores["train"], "shard-00000.arrow")
    whole = path.read_bytes()
    place = whole.rindex(b"\x00\x00\x00\x3f")  # 0.5 becomes another value
    path.write_bytes(whole[: place + 3] + b"\x40" + whole[place + 4 :])
    with caplog.at_level(logging.WARNING):
        joined = scorer().attach(data, name="train")
    assert "shard-00000.arrow: damaged" in caplog.text
    assert joined["rejected_scores"] == [[0.5], [0.5] * 3]
    assert path.read_bytes() == whole


def test_another_oracle_template_cutoff_or_row_is_another_store(scorer, world, monkeypatch):
    fake_scores(monkeypatch)
    data = rows((2, 1), (1, 3))
    stores = set()
    variants = ({}, {"template": "qwen"}, {"cutoff_len": 64}, {"oracle": world / "policy"}, {"base": world / "policy"})
    for overrides in variants:
        made = scorer(**overrides)
        made.attach(data, name="train")
        stores.add(made.stores["train"])
    made = scorer()
    made.attach(rows((2, 1), (1, 2)), name="train")
    stores.add(made.stores["train"])
    assert len(stores) == len(variants) + 1


def test_an_oracle_that_scores_only_zeros_is_refused(scorer, monkeypatch):
    fake_scores(monkeypatch, value=0.0)
    with pytest.raises(SepoError, match="all scores are zero"):
        scorer().attach(rows((2, 1)), name="train")
