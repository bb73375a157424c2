"""Registered token weight in a recipe: its keys, refused input, defaults of objectives and stages, and a real run."""

import os
import sys

import pytest

from sepo.cli.doctor import registered_findings
from sepo.errors import SepoError
from sepo.hosts.llamafactory.board.keys import stage_keys
from sepo.objectives import resolve_method
from sepo.recipe.overview import Changed
from sepo.recipe.resolve import resolve
from tests.support.packages import WEIGHT_EXAMPLE, example_wheel, on_path, write_example, write_package
from tests.support.recipes import environment, logged, run, sepo_recipe, write

HOST_KEYS = ("stage", "pref_loss", "pref_beta", "pref_ftx", "simpo_gamma", "learning_rate", "model_name_or_path")

CODE = """
from dataclasses import dataclass

import torch

from sepo.objectives import Number, Objective, Stage, TokenWeight, WeightRule, resolve_method

@dataclass(frozen=True)
class Doubled(TokenWeight):
    rate: float = 1.0
    def weights(self, tokens):
        return torch.full(tokens.mask.shape, 2.0 * self.rate)

class Signed(Doubled):
    reads_scores = True
    def can_be_negative(self, bounds):
        return bounds is None or bounds[0] < 0

def plain(*, beta):
    return resolve_method("dpo", beta=beta)

BETA = {"beta": Number(0.3, low=0)}
RATE = {"rate": Number(1.5, low=0)}
doubled = WeightRule(Doubled, RATE)
signed = WeightRule(Signed, RATE)
learning = WeightRule(Doubled, RATE)
number = WeightRule(lambda: 2.0)
ended = Objective(plain, BETA, weight="ending")
renamed = Objective(plain, {**BETA, **RATE}, weight="doubled", weight_settings=("rate",))
late = Stage("dpo", keys={"token_weight": "ending", "ending_last": 8})
"""
GROUPS = {
    "weights": {name: f"team_weights:{name}" for name in ("doubled", "signed", "learning", "number")},
    "objectives": {name: f"team_weights:{name}" for name in ("ended", "renamed")},
    "stages": {"late": "team_weights:late"},
}


@pytest.fixture(autouse=True)
def installed(tmp_path):
    folder = write_example(tmp_path / "site", WEIGHT_EXAMPLE)
    write_package(folder, "team-weights", GROUPS, CODE)
    with on_path(folder):
        yield folder


def resolved(host_keys=HOST_KEYS, **keys):
    return resolve({"stage": "minor_dpo", "model_name_or_path": "m", **keys}, host_keys=host_keys)


def test_a_recipe_uses_a_registered_weight_with_its_keys():
    host, settings = resolved(token_weight="ending", ending_last="32")
    assert host == {"model_name_or_path": "m", "stage": "dpo", "pref_loss": "sigmoid"}
    assert settings.method == resolve_method("minor_dpo", token_weight="ending", ending_last=32)
    assert (settings.method.token_weight.last, settings.method.token_weight.rest) == (32, 0.2)
    assert Changed("ending_last", 32, 64, "ending_last") in settings.overview.changed
    note = "registered by another package: token_weight 'ending' of package own-weight 0.1 (own_weight:ending)."
    assert note in settings.notes
    assert dict(settings.overview.rows)["token weight"] == "Ending (last 32, rest 0.2)"


@pytest.mark.parametrize(
    ("keys", "weight"),
    [
        ({"objective": "ended"}, "Ending(last=64, rest=0.2)"),
        ({"objective": "ended", "ending_rest": 0.5}, "Ending(last=64, rest=0.5)"),
        ({"objective": "ended", "token_weight": "doubled", "doubled_rate": 2}, "Doubled(rate=2.0)"),
        ({"objective": "renamed", "renamed_rate": 3}, "Doubled(rate=3.0)"),
        ({"objective": "renamed", "token_weight": "ending", "ending_last": 1}, "Ending(last=1, rest=0.2)"),
        ({"objective": {"ended": 0.5, "sft": 1.0}, "ending_rest": 0.0}, "Ending(last=64, rest=0.0)"),
        ({"stage": "late"}, "Ending(last=8, rest=0.2)"),
        ({"stage": "late", "ending_last": 2}, "Ending(last=2, rest=0.2)"),
        ({"stage": "late", "objective": "simpo"}, "None"),
    ],
)
def test_objectives_and_stages_have_a_registered_weight_by_default(keys, weight):
    assert str(resolved(**keys)[1].method.token_weight) == weight


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"token_weight": "endng"}, ["token_weight is 'endng'", "doubled, ending", "Did you mean 'ending'"]),
        ({"token_weight": "ending", "ending_lsat": 1}, ["unknown key 'ending_lsat'", "Did you mean 'ending_last'"]),
        ({"token_weight": "ending", "ending_last": 0}, ["ending_last is 0", "at least 1", "the default is 64"]),
        ({"token_weight": "ending", "ending_rest": "much"}, ["ending_rest is 'much'", "a number"]),
        (
            {"ending_last": 3},
            ["belongs to token weight ending", "the token weight is none", "set token_weight: ending"],
        ),
        ({"objective": "ended", "token_weight": "none", "ending_last": 3}, ["the token weight is none"]),
        ({"token_weight": "learning"}, ["team-weights 0.1", "'rate'", "'learning_rate'", "rename"]),
        (
            {"token_weight": "number"},
            ["token_weight 'number' of package team-weights 0.1", "returned float", "TokenWeight"],
        ),
        ({"token_weight": "number", "token_scorer": "random"}, ["token_weight 'number'", "returned float"]),
        ({"token_weight": "signed"}, ["weighs tokens by their scores (Signed)", "set token_scorer"]),
        ({"token_weight": "signed", "token_scorer": "policy_ref", "objective": "simpo"}, ["can be negative (Signed)"]),
        ({"token_weight": "ending", "ld_alpha": 0.5}, ["token_weight length, and token_weight is ending"]),
    ],
)
def test_errors_give_what_was_found_and_what_to_do(keys, words):
    with pytest.raises(SepoError) as caught:
        resolved(**keys)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_board_fills_in_the_keys_of_a_stage_with_such_a_weight():
    keys = stage_keys("late")
    assert (keys["ending_last"], keys["ending_rest"]) == (8, 0.2)


def test_doctor_lists_registered_weights_and_those_that_are_broken(tmp_path):
    found = {finding.text: finding.good for finding in registered_findings(HOST_KEYS)}
    assert found["token_weight 'ending' of package own-weight 0.1 (own_weight:ending)"]
    assert found["token_weight 'signed' of package team-weights 0.1 (team_weights:signed)"]
    wrong = [text for text, good in found.items() if not good]
    assert len(wrong) == 2, wrong  # learning: its key is the host's; number: not a token weight
    groups = {"weights": {"gone": "no_such:x", "length": "own_weight:ending", "ending": "x:y"}}
    with on_path(write_package(tmp_path / "more", "broken", groups)):
        found = [finding.text for finding in registered_findings(HOST_KEYS) if not finding.good]
    wrong = [text for text in found if "broken 0.1" in text]
    assert any("No module named 'no_such'" in text for text in wrong)
    assert any("token_weight 'length' is built in" in text for text in wrong)
    assert any("'ending' is registered by broken 0.1 (x:y) and own-weight 0.1" in text for text in wrong)


@pytest.mark.host
def test_the_example_is_installed_and_trained(world, tmp_path):
    """As a user would: pip install, then `sepo train` in a subprocess, with the weight's own key."""
    site = tmp_path / "packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site]
    run([*pip, example_wheel(tmp_path / "built", WEIGHT_EXAMPLE)], cwd=tmp_path)
    no_oracle = {"oracle_model": None, "oracle_base_model": None, "token_scores_dir": None}
    losses = {}
    for name, keys in {"ending": {"token_weight": "ending", "ending_last": 2, "ending_rest": 0}, "dpo": {}}.items():
        recipe = sepo_recipe(
            world, tmp_path / name, stage="minor_dpo", objective="dpo", max_steps=2, learning_rate=3e-2,
            **no_oracle, **keys,
        )  # fmt: skip
        paths = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "sepo", "train", write(recipe, tmp_path / f"{name}.yaml")]
        done = run(command, cwd=tmp_path, env=environment(PYTHONPATH=paths))
        found = "token_weight 'ending' of package own-weight 0.1" in done.stdout + done.stderr
        assert found == (name == "ending")
        losses[name] = [entry["loss"] for entry in logged(tmp_path / name) if "loss" in entry]
        assert losses[name][0] == pytest.approx(0.6931472, abs=1e-5)  # the reference is the policy at its start
    assert losses["ending"][1] != losses["dpo"][1]
