"""Token scorers without a scoring model, and their units, in real runs of the host's trainer on tiny models."""

import json

import numpy as np
import pytest

from sepo.demo.dataset import write_dataset
from sepo.report.reading import read_subject
from tests.support import tiny
from tests.support.recipes import logged, sepo_recipe, sepo_train

pytestmark = pytest.mark.host

NO_ORACLE = {"oracle_model": None, "oracle_base_model": None, "token_scores_dir": None}


def training(output):
    return [entry for entry in logged(output) if "loss" in entry]


def marked_pairs(folder):
    """Save the tiny pairs with spans for the number and the noun in both responses."""
    rows = tiny.pairs(24)
    for row in rows:
        for side in ("chosen", "rejected"):
            text = row[side]["value"]
            start, end = len("It has "), len("It has 0 ") + (4 if side == "chosen" else 5)
            assert text[start:end].split()[1] in ("legs", "wings")
            row[f"{side}_spans"] = [{"start": start, "end": end, "weight": 1.0}]
    folder.mkdir()
    (folder / "marked.json").write_text(json.dumps(rows))
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    info = {"marked": {"file_name": "marked.json", "formatting": "sharegpt", "ranking": True, "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def test_minor_dpo_over_the_users_spans(world, tmp_path):
    recipe = sepo_recipe(
        world, tmp_path / "out", stage="minor_dpo", token_scorer="file", select_scope="dataset", select_ratio=0.1,
        dataset="marked", dataset_dir=str(marked_pairs(tmp_path / "data")), val_size=4, eval_strategy="steps",
        eval_steps=2, **NO_ORACLE,
    )  # fmt: skip
    done = sepo_train(recipe, tmp_path)
    assert "thresholds over train: chosen scores from 1 up, rejected scores from -1 down." in done.stdout
    entries = training(tmp_path / "out")
    assert entries[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert all(0.05 < entry["select/chosen_ratio"] < 0.25 for entry in entries)
    record = json.loads((tmp_path / "out" / "sepo_settings.json").read_text())
    assert record["token_scorer"] == "file"
    assert (record["select"]["unit"], record["select"]["scope"]) == ("token", "dataset")
    assert [entry for entry in logged(tmp_path / "out") if "eval_select/tokens" in entry]
    recipe |= {"output_dir": str(tmp_path / "plain"), "dataset": "tiny_pairs", "dataset_dir": str(world / "data")}
    refused = sepo_train(recipe, tmp_path, name="plain.yaml", expect=2)
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("sepo: error:")]
    assert "dataset 'tiny_pairs.json' has the columns" in line
    assert "give the rows chosen_scores" in line


def overlapping(tokens, spans):
    """Return for each token whether it overlaps a span, in characters of the text that the tokens spell."""
    found, end = [], 0
    for token in tokens:
        start, end = end, end + len(token)
        found.append(any(start < span["end"] and end > span["start"] for span in spans))
    return found


def test_the_spans_of_the_generated_pairs_are_selected(world, tmp_path):
    recipe = sepo_recipe(
        world, tmp_path / "out", token_scorer="file", select_rule="quantile", select_ratio=0.01, cutoff_len=512,
        dataset="fluent_pairs", dataset_dir=str(write_dataset(tmp_path / "data")), max_samples=12, **NO_ORACLE,
    )  # fmt: skip
    sepo_train(recipe, tmp_path)
    rows = json.loads((tmp_path / "data" / "fluent_pairs.json").read_text())
    pairs = read_subject(tmp_path / "out").pairs
    assert len(pairs) >= 8
    for pair in pairs:
        for side in ("chosen", "rejected"):
            row, answer = rows[pair.row], getattr(pair, side)
            assert "".join(answer.tokens).startswith(row[side]["value"])
            assert answer.selected.tolist() == overlapping(answer.tokens, row[f"{side}_spans"])


def test_random_spans_of_a_seed(world, tmp_path):
    recipe = sepo_recipe(
        world, tmp_path / "out", token_scorer="random", select_unit="span", select_span_tokens=4, select_ratio=0.5,
        **NO_ORACLE,
    )  # fmt: skip
    sepo_train(recipe, tmp_path)
    entries = training(tmp_path / "out")
    # Spans have at least 4 tokens, which is more than half of the shortest responses.
    assert all(0.4 < entry["select/chosen_ratio"] <= 0.6 for entry in entries)
    record = json.loads((tmp_path / "out" / "sepo_settings.json").read_text())
    assert record["select"] == {
        "chosen_ratio": 0.5, "rejected_ratio": 0.5, "rule": "floor", "unit": "span", "scope": "response",
        "span_tokens": 4, "count": "ratio",
    }  # fmt: skip


def test_confidence_by_steps_of_a_pair(world, tmp_path):
    recipe = sepo_recipe(
        world, tmp_path / "out", objective="simpo", token_scorer="confidence", select_unit="step", select_scope="pair",
        max_steps=2, gradient_accumulation_steps=2, **NO_ORACLE,
    )  # fmt: skip
    sepo_train(recipe, tmp_path)
    entries = training(tmp_path / "out")
    assert all(0 < entry["select/chosen_ratio"] <= 1 for entry in entries)
    subject = read_subject(tmp_path / "out")
    assert [pair.step for pair in subject.pairs] == [1, 1, 1, 1, 2, 2, 2, 2]
    for number, entry in enumerate(entries):  # the record has all pairs of the two device batches of a step
        step = subject.pairs[4 * number : 4 * number + 4]
        for side in ("chosen", "rejected"):
            sides = [getattr(pair, side) for pair in step]
            share = sum(one.selected.sum() for one in sides) / sum(one.counted for one in sides)
            assert entry[f"select/{side}_ratio"] == pytest.approx(share, abs=1e-6)
        for pair in subject.pairs:  # the tokens that the policy expects least
            assert all(score >= 0 for score in pair.chosen.scores[pair.chosen.candidates])
            assert np.isnan(pair.chosen.scores[~pair.chosen.candidates]).all()
