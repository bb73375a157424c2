"""Scores of a data set in the host's columns: rows without a response, joining, and the keys of stores."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset

from sepo.errors import SepoError
from sepo.scoring import oracle as scoring
from sepo.scoring import stored_columns as scored_rows
from sepo.training.row_losses import RowLosses
from sepo.training.trainable_rows import NO_RESPONSE, SAME_RESPONSES, keep_trainable
from tests.support.hub import LocalModels
from tests.support.rows import IGNORE, rows


class Words:
    @staticmethod
    def decode(ids, **options):
        return " ".join(map(str, ids))


def kept(data, losses=None):
    return keep_trainable(data, name="train", tokenizer=Words, losses=RowLosses() if losses is None else losses)


def test_rows_without_a_response_are_counted_and_skipped():
    losses = RowLosses()
    left = kept(rows((2, 2), (0, 2), (1, 3), (3, 0), same=[0]), losses)
    assert left["chosen_input_ids"] == [[1, 2, 3, 12]]
    empty = {"what": "skipped", "reason": NO_RESPONSE, "rows": 2, "example": "1 2 3"}
    same = {"what": "skipped", "reason": SAME_RESPONSES, "rows": 1, "example": "1 2 3 10 11"}
    assert losses.record() == {"train": {"given": 4, "used": 1, "losses": [empty, same]}}


def test_responses_are_compared_by_their_tokens_alone():
    data = rows((2, 2), (2, 2), (2, 3)).to_dict()
    data["rejected_labels"][0][3:] = data["rejected_input_ids"][0][3:] = [10, 99]  # the last token differs
    data["rejected_labels"][1] = [IGNORE, IGNORE, 3, *data["chosen_labels"][1][3:]]  # starts at another token
    for name in ("input_ids", "labels"):  # one response continues the other
        data[f"rejected_{name}"][2] = [*data[f"chosen_{name}"][2], 7]
    assert len(kept(Dataset.from_dict(data))) == 3


def test_the_data_set_is_unchanged_if_every_row_can_be_trained_on():
    data, losses = rows((2, 2), (1, 1)), RowLosses()
    assert kept(data, losses) is data
    assert losses.record() == {"train": {"given": 2, "used": 2, "losses": []}}


def test_a_data_set_without_a_trainable_row_is_refused():
    with pytest.raises(SepoError, match="no row is left to train on: in 2 of 2 rows a response has no token after"):
        kept(rows((0, 1), (0, 0)))
    with pytest.raises(SepoError, match=r"in 1 of 2 rows a response .* in 1 of 2 rows both responses have the same"):
        kept(rows((0, 1), (2, 2), same=[1]))


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


def fake_scores(monkeypatch, value=0.5, zeros=0):
    """Score every token with a value, those of the first ``zeros`` rows with zero."""

    def score(self, dataset, start, stop, on_batch):
        counts = {
            side: [len(ids) - 3 for ids in dataset[start:stop][f"{side}_input_ids"]] for side in ("chosen", "rejected")
        }
        values = [0.0 if row < zeros else value for row in range(start, stop)]
        return {
            f"{side}_scores": [[number] * count for number, count in zip(values, counts[side], strict=True)]
            for side in counts
        }

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


@pytest.mark.parametrize("zeros", [39, 40])
def test_all_rows_decide_whether_an_oracle_scores_only_zeros(scorer, monkeypatch, zeros):
    """Zeros of the first rows alone are no reason to refuse the others."""
    monkeypatch.setattr(scored_rows, "_BLOCK", 16)
    fake_scores(monkeypatch, zeros=zeros)
    data = rows(*[(2, 1)] * 40)
    if zeros == 40:
        with pytest.raises(SepoError, match="all scores are zero"):
            scorer().attach(data, name="train")
    else:
        assert scorer().attach(data, name="train")["chosen_scores"][38:] == [[0.0, 0.0], [0.5, 0.5]]
