"""Registered stored scorer: scores in the store, reuse by its identity, and refused scores."""

import os
import sys
from types import SimpleNamespace

import pytest
from datasets import Dataset

from sepo.errors import SepoError
from sepo.objectives import StoredScorer, available_scorers, resolve_method
from sepo.recipe.resolve import resolve
from sepo.scoring.custom import RegisteredScores
from tests.support import tiny
from tests.support.packages import SCORER_EXAMPLE, example_wheel, on_path, write_example, write_package
from tests.support.recipes import environment, logged, run, sepo_recipe, write

HOST_KEYS = ("stage", "pref_loss", "pref_beta", "pref_ftx", "simpo_gamma", "learning_rate", "model_name_or_path")
NO_ORACLE = {"oracle_model": None, "oracle_base_model": None}

CODE = """
from sepo.objectives import StoredScorer, TokenScorer

def load(device):
    return lambda rows: [[float(len(text)) for text in row.texts] for row in rows]

good = StoredScorer(load, {"version": 1})
renewed = StoredScorer(load, {"version": 2})
missing = StoredScorer(lambda device: lambda rows: [[1.0] for row in rows[1:]])
short = StoredScorer(lambda device: lambda rows: [[1.0] for row in rows])
rare = StoredScorer(lambda device: lambda rows: [[float(len(row.texts) > 40)] * len(row.texts) for row in rows])
flat = StoredScorer(lambda device: lambda rows: [[0.0] * len(row.texts) for row in rows])
live = TokenScorer("live", from_logps=lambda tokens: tokens.policy_logps)
"""
SCORERS = {name: f"team_scorers:{name}" for name in ("good", "renewed", "missing", "short", "rare", "flat")}


@pytest.fixture(autouse=True)
def installed(tmp_path):
    folder = write_example(tmp_path / "site", SCORER_EXAMPLE)
    write_package(folder, "team-scorers", {"scorers": {**SCORERS, "wrong": "team_scorers:live"}}, CODE)
    with on_path(folder):
        yield folder


def rows(words, counts=(1, 2, 3)):
    table = {f"{side}_{name}": [] for side in ("chosen", "rejected") for name in ("input_ids", "labels")}
    for count in counts:
        for side, answer in (("chosen", "indeed a fact " * count), ("rejected", "no " * count)):
            prompt, ids = words.encode("Is it so"), words.encode(answer)
            table[f"{side}_input_ids"].append(prompt + ids)
            table[f"{side}_labels"].append([-100] * len(prompt) + ids)
    return Dataset.from_dict(table)


@pytest.fixture
def attached(tmp_path):
    words = tiny.tokenizer()

    def attach(name, **options):
        settings = SimpleNamespace(
            method=resolve_method("simpo", token_scorer=name), token_scores_dir=str(tmp_path / "scores"),
            score_batch_tokens=options.pop("score_batch_tokens", 64),
        )  # fmt: skip
        host = {
            "model_args": SimpleNamespace(compute_dtype=None),
            "data_args": SimpleNamespace(template="chatml", cutoff_len=64),
            "training_args": SimpleNamespace(world_size=1, process_index=0, device="cpu", output_dir="out"),
        }
        scorer = RegisteredScores(settings, tokenizer=words, **host)
        part = options.get("part", "train")
        return scorer.attach(rows(words, **options.get("data", {})), name=part), scorer.stores[part]

    return attach


def test_scores_come_in_the_rows_order_whatever_the_batches(attached, tmp_path):
    joined, store = attached("good")
    words = tiny.tokenizer()
    for row in joined:
        for side in ("chosen", "rejected"):
            ids = [label for label in row[f"{side}_labels"] if label != -100]
            pieces = [words.decode([*words.encode("a"), token])[1:] for token in ids]
            assert row[f"{side}_scores"] == [float(len(piece)) for piece in pieces]
    again, found = attached("good", score_batch_tokens=1)
    assert found == store
    assert again["chosen_scores"] == joined["chosen_scores"]


def test_other_settings_or_another_version_are_another_store(attached, tmp_path):
    first = attached("good")[1]
    assert attached("renewed")[1] != first
    info = tmp_path / "site" / "team_scorers-0.1.dist-info" / "METADATA"
    info.write_text(info.read_text().replace("Version: 0.1", "Version: 0.2"))
    with on_path(tmp_path / "site"):
        assert attached("good")[1] != first


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", r"'missing' returned \d rows for a batch of \d responses, expected one for each"),
        ("short", r"'short' returned scores of shape \[1\] for a .* response of \d+ tokens"),
        ("flat", "'flat' gives every token of train the score zero"),
        ("wrong", r"'wrong' of package team-scorers 0\.1 .* is of type TokenScorer, expected .*StoredScorer"),
    ],
)
def test_invalid_scores_are_refused(attached, name, message):
    with pytest.raises(SepoError, match=message):
        attached(name)


def test_zeros_are_scores(attached, caplog):
    """A scorer may mark few tokens: in no more than one row here, and in none of an evaluation set."""
    joined, _ = attached("rare", data={"counts": (*[1] * 40, 9)})
    assert not any(map(any, joined["chosen_scores"][:40]))
    assert all(joined["chosen_scores"][40])
    attached("rare", part="eval", data={"counts": (1,)})
    assert "'rare' gives every token of eval the score zero" in caplog.text


def test_a_name_in_both_groups_is_refused(tmp_path):
    write_package(tmp_path / "more", "rude", {"selectors": {"rarity": "x:y"}})
    with on_path(tmp_path / "more"), pytest.raises(SepoError, match=r"'rarity' is registered by .*own-scorer.*rude"):
        resolve_method("simpo", token_scorer="rarity")


def test_a_recipe_uses_it_and_scores_before_training():
    keys = {"stage": "sepo", "objective": "simpo", "token_scorer": "rarity", "model_name_or_path": "m"}
    settings = resolve(keys, host_keys=HOST_KEYS)[1]
    assert settings.scores_before_training
    assert settings.method.needs_scores
    assert settings.method.token_scorer.rejected_largest
    note = "registered by another package: token_scorer 'rarity' of package own-scorer 0.1 (own_scorer:rarity)."
    assert note in settings.notes
    assert "rarity" in available_scorers()
    assert hash(settings.method) == hash(resolve(keys, host_keys=HOST_KEYS)[1].method)
    with pytest.raises(SepoError, match="load of a stored scorer is 3"):
        StoredScorer(3)


@pytest.mark.host
def test_the_example_is_installed_scored_and_trained(world, tmp_path):
    """As a user would: pip install, `sepo score`, then `sepo train`, which finds the scores."""
    site = tmp_path / "packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site]
    run([*pip, example_wheel(tmp_path / "built", SCORER_EXAMPLE)], cwd=tmp_path)
    recipe = sepo_recipe(
        world, tmp_path / "out", objective="simpo", token_scorer="rarity", max_steps=1, select_ratio=0.5, **NO_ORACLE
    )
    env = environment(PYTHONPATH=os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
    sepo = [sys.executable, "-m", "sepo"]
    done = run([*sepo, "score", write(recipe, tmp_path / "recipe.yaml")], cwd=tmp_path, env=env, fresh=True)
    assert "token scores of train: 24 pairs" in done.stdout
    done = run([*sepo, "train", tmp_path / "recipe.yaml"], cwd=tmp_path, env=env)
    assert "nothing to score" in done.stdout + done.stderr
    (entry,) = [entry for entry in logged(tmp_path / "out") if "loss" in entry]
    assert 0.4 < entry["select/rejected_ratio"] <= 0.5
    listed = run([*sepo, "scores", "ls", "--dir", tmp_path / "scores"], cwd=tmp_path, env=env).stdout
    assert "rarity" in listed
    assert "tiny_pairs (train)" in listed
