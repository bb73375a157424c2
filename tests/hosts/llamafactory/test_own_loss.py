"""Registered objective, token scorer and stage in a recipe: keys, refused input, and a real run."""

import os
import sys

import pytest
from datasets import Dataset

from sepo.cli.doctor import registered_findings
from sepo.errors import SepoError
from sepo.hosts.llamafactory.chain_steps import plan_steps
from sepo.objectives import resolve_method
from sepo.recipe.overview import Changed
from sepo.recipe.resolve import resolve
from sepo.recipe.stage_names import check_stage, is_sepo_stage
from sepo.scoring.live_columns import selection_columns
from tests.support import tiny
from tests.support.packages import example_wheel, on_path, write_example, write_package
from tests.support.recipes import environment, logged, run, sepo_recipe, write

HOST_KEYS = ("stage", "pref_loss", "pref_beta", "pref_ftx", "simpo_gamma", "learning_rate", "model_name_or_path")

CODE = """
from sepo.objectives import Number, Objective, Stage, TokenScorer, Whole, Choice, resolve_method

def build(*, rank=1, kind="a"):
    return resolve_method("simpo")

def long_words(row):
    return [float(len(text)) for text in row.texts]

def per_row(row):
    return [1.0]

words = TokenScorer("words", from_row=long_words, rejected_largest=True)
short = TokenScorer("short", from_row=per_row)
typed = Objective(build, {"rank": Whole(2, low=1), "kind": Choice("a", ("a", "b"))})
prompted = Objective(build, {}, scorer="contrastive")
worded = Stage("simpo", token_scorer="words", keys={"select_ratio": 0.2, "simpo_gamma": 0.5})
foreign = Stage("simpo", keys={"learning_rate": 1.0})
homeless = Stage("simpoo")
"""
GROUPS = {
    "objectives": {
        "typed": "team_parts:typed",
        "learning": "team_parts:typed",
        "tdpo": "team_parts:typed",
        "prompted": "team_parts:prompted",
    },
    "selectors": {"words": "team_parts:words", "short": "team_parts:short"},
    "stages": {name: f"team_parts:{name}" for name in ("worded", "foreign", "homeless")},
}


@pytest.fixture(autouse=True)
def installed(tmp_path):
    folder = write_example(tmp_path / "site")
    write_package(folder, "team-parts", GROUPS, CODE)
    with on_path(folder):
        yield folder


def resolved(stage="focal_mean", host_keys=HOST_KEYS, **keys):
    return resolve({"stage": stage, "model_name_or_path": "m", **keys}, host_keys=host_keys)


def test_a_stage_brings_its_objective_and_its_defaults():
    host, settings = resolved()
    assert host == {"model_name_or_path": "m", "stage": "dpo", "pref_loss": "sigmoid"}
    assert settings.stage == "focal_mean"
    assert settings.method == resolve_method("focal_dpo", mean=True, beta=2.0)
    assert settings.overview.changed == (
        Changed("beta", 2.0, 0.1, "stage focal_mean"),
        Changed("mean", True, False, "stage focal_mean"),
    )
    assert [note.split(": ")[1] for note in settings.notes] == [
        "stage 'focal_mean' of package own-loss 0.1 (own_loss:focal_mean).",
        "objective 'focal_dpo' of package own-loss 0.1 (own_loss:focal_dpo).",
    ]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"focal_dpo_focus": "0.5"}, {"focus": 0.5, "mean": True, "beta": 2.0}),
        ({"focal_dpo_mean": "false", "pref_beta": 0.3}, {"mean": False, "beta": 0.3}),
        ({"stage": "minor_dpo", "objective": "focal_dpo", "focal_dpo_focus": 1}, {"focus": 1.0, "mean": False}),
        ({"stage": "treg", "objective": "focal_dpo", "treg_alpha": 0.5}, {"treg_alpha": 0.5, "beta": 0.1}),
        ({"token_scorer": "random", "select_ratio": 0.5}, {"chosen_ratio": 0.5, "mean": False, "beta": 0.1}),
        ({"objective": "simpo"}, {"gamma": 1.0, "beta": 2.0}),
        ({"stage": "worded"}, {"chosen_ratio": 0.2, "rejected_ratio": 0.2, "gamma": 0.5}),
        ({"stage": "worded", "select_ratio": 0.4}, {"chosen_ratio": 0.4, "rejected_ratio": 0.4, "gamma": 0.5}),
        ({"stage": "worded", "chosen_select_ratio": 0.4}, {"chosen_ratio": 0.4, "rejected_ratio": 0.2}),
        ({"stage": "worded", "token_scorer": "none"}, {"gamma": 1.0}),
        ({"stage": "minor_dpo", "objective": "typed", "typed_rank": 3, "typed_kind": "b"}, {"rank": 3, "kind": "b"}),
    ],
)
def test_keys_reach_the_method(keys, expected):
    hyperparameters = resolved(**keys)[1].method.hyperparameters
    assert {name: hyperparameters.get(name) for name in expected} == expected


def test_a_declared_objective_brings_its_scorer():
    settings = resolved(stage="minor_dpo", objective="prompted")[1]
    assert settings.method.scorer == "contrastive"
    assert settings.token_rewards.origin == "prompts"


def test_command_line_form():
    words = ["--stage", "focal_mean", "--focal_dpo_focus", "3", "--learning_rate", "1", "--focal-dpo-mean=false"]
    host, settings = resolve(words, host_keys=HOST_KEYS)
    assert host == ["--learning_rate", "1", "--stage", "dpo", "--pref_loss", "sigmoid"]
    assert settings.method == resolve_method("focal_dpo", mean=False, beta=2.0, focus=3)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"focal_dpo_fokus": 1}, ["unknown key 'focal_dpo_fokus'", "Did you mean 'focal_dpo_focus'"]),
        ({"focal_dpo_focus": -1}, ["focal_dpo_focus is -1.0", "[0, inf)", "the default is 2"]),
        ({"focal_dpo_focus": "much"}, ["focal_dpo_focus is 'much'", "a number"]),
        ({"focal_dpo_mean": 2}, ["focal_dpo_mean is 2", "true or false"]),
        ({"objective": "dpo", "focal_dpo_focus": 1}, ["belongs to objective focal_dpo", "the objective is dpo"]),
        ({"objective": "focal_dop"}, ["objective is 'focal_dop'", "Did you mean 'focal_dpo'"]),
        ({"token_scorer": "wrods"}, ["token_scorer is 'wrods'", "none, short, words", "Did you mean 'words'"]),
        ({"objective": "typed", "typed_rank": 0}, ["typed_rank is 0", "at least 1"]),
        ({"objective": "typed", "typed_rank": 1.5}, ["typed_rank is 1.5", "a whole number"]),
        ({"objective": "typed", "typed_kind": "c"}, ["typed_kind is 'c'", "one of a, b"]),
        ({"objective": "tdpo"}, ["objective 'tdpo' of package team-parts 0.1", "'tdpo_kind'"]),
        ({"objective": "learning"}, ["team-parts 0.1", "'rank'", "'learning_rank'", "rename"]),
        ({"stage": "foreign"}, ["stage 'foreign' of package team-parts 0.1", "the key 'learning_rate'"]),
        (
            {"stage": "homeless"},
            ["stage 'homeless' of package team-parts 0.1", "the objective 'simpoo'", "Did you mean 'simpo'"],
        ),
        ({"pref_loss": "focal_dpo"}, ["pref_loss is 'focal_dpo'", "objective: focal_dpo"]),
    ],
)
def test_errors_give_what_was_found_and_what_to_do(keys, words):
    taken = (*HOST_KEYS, "learning_rank", "tdpo_kind")
    with pytest.raises(SepoError) as caught:
        resolved(host_keys=taken, **keys)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_which_stages_are_sepo_stages(tmp_path):
    assert [is_sepo_stage(stage) for stage in ("focal_mean", "sepo", "dpo", "focal_maen", None)] == [1, 1, 0, 0, 0]
    check_stage("focal_mean")
    with pytest.raises(SepoError, match=r"unknown stage 'focal_maen'\. Did you mean 'focal_mean'\?"):
        check_stage("focal_maen")
    with on_path(write_package(tmp_path / "more", "rude", {"stages": {"sft": "x:y", "focal_mean": "x:y"}})):
        with pytest.raises(SepoError, match=r"stage 'sft' is built in, and package rude 0\.1 registers it too"):
            is_sepo_stage("sft")
        with pytest.raises(SepoError, match=r"registered by own-loss 0\.1 \(.*\) and rude 0\.1 \(x:y\)"):
            is_sepo_stage("focal_mean")
        assert not is_sepo_stage("dpo")


def test_doctor_lists_what_is_registered_and_what_is_broken(tmp_path):
    found = {finding.text: finding.good for finding in registered_findings(())}
    assert found["objective 'focal_dpo' of package own-loss 0.1 (own_loss:focal_dpo)"]
    assert found["token_scorer 'words' of package team-parts 0.1 (team_parts:words)"]
    assert found["stage 'worded' of package team-parts 0.1 (team_parts:worded)"]
    wrong = [text for text, good in found.items() if not good]
    assert len(wrong) == 2, wrong  # the two broken stages
    groups = {"objectives": {"gone": "no_such:x", "dpo": "own_loss:focal_dpo"}, "stages": {"sft": "x:y"}}
    with on_path(write_package(tmp_path / "more", "broken", groups)):
        found = [finding.text for finding in registered_findings(()) if not finding.good]
    wrong = [text for text in found if "broken 0.1" in text]
    assert len(wrong) == 3, wrong
    assert any("No module named 'no_such'" in text for text in wrong)


def test_doctor_reports_that_nothing_is_registered(monkeypatch):
    monkeypatch.setattr("sepo.cli.doctor.registered", lambda kind: ())
    assert [(finding.good, "nothing" in finding.text) for finding in registered_findings(())] == [(True, True)]


def test_a_scorer_of_rows_gets_the_tokens_of_each_response():
    words = tiny.tokenizer()
    prompt, answer = words.encode("Is it so"), words.encode("indeed a fact")
    row = {f"{side}_input_ids": [prompt + answer] for side in ("chosen", "rejected")}
    row |= {f"{side}_labels": [[-100] * len(prompt) + answer] for side in ("chosen", "rejected")}
    data = {"train_dataset": Dataset.from_dict(row)}
    scored = selection_columns(data, resolve_method("dpo", token_scorer="words"), tokenizer=words, seed=0)
    pieces = [words.decode([*words.encode("a"), token])[len("a") :] for token in answer]
    assert scored["train_dataset"][0]["rejected_scores"] == [float(len(piece)) for piece in pieces]
    with pytest.raises(SepoError, match=r"'short' returned scores of shape \[1\] for a chosen response of \d+ tokens"):
        selection_columns(data, resolve_method("dpo", token_scorer="short"), tokenizer=words, seed=0)


def test_a_pipelines_shared_keys_of_an_own_objective_are_the_policys():
    recipe = {"model_name_or_path": "m", "output_dir": "o", "objective": "focal_dpo", "focal_dpo_focus": 1,
              "dataset": "d", "policy": {"token_scorer": "oracle"}}  # fmt: skip
    steps = {step.name: step.recipe for step in plan_steps(recipe)}
    assert "focal_dpo_focus" not in steps["oracle"]
    assert steps["policy"]["focal_dpo_focus"] == 1


@pytest.mark.host
def test_the_example_is_installed_and_trained(world, tmp_path):
    """As a user would: pip install, then `sepo train` in a subprocess, by the stage's name and its own key."""
    site = tmp_path / "packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site]
    run([*pip, example_wheel(tmp_path / "built")], cwd=tmp_path)
    no_oracle = {"oracle_model": None, "oracle_base_model": None, "token_scores_dir": None}
    recipe = sepo_recipe(
        world, tmp_path / "out", stage="focal_mean", focal_dpo_focus=1.0, max_steps=2, learning_rate=3e-2, **no_oracle
    )
    paths = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "sepo", "train", write(recipe, tmp_path / "recipe.yaml")]
    done = run(command, cwd=tmp_path, env=environment(PYTHONPATH=paths))
    assert "objective 'focal_dpo' of package own-loss 0.1" in done.stdout + done.stderr
    losses = [entry["loss"] for entry in logged(tmp_path / "out") if "loss" in entry]
    assert losses[0] == pytest.approx(0.6931472 * 0.5, abs=1e-5)  # log 2, halved by (1 - p)^1 at p = 1/2
    assert losses[1] != losses[0]
