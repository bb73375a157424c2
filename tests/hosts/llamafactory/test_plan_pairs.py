"""`sepo plan` for recipes of `sepo pairs`: memory of sampling and judging, and whether they fit."""

import json

import pytest

from sepo.cli import main
from sepo.errors import SepoError
from sepo.hosts.llamafactory.plan.pairs import pairs_account
from sepo.hosts.llamafactory.plan.pairs_report import fitting_batch, pairs_peak_in_words
from tests.support.recipes import sepo_recipe, write
from tests.support.shapes import SHAPES

pytestmark = pytest.mark.host

MODEL = {"model_name_or_path": "llama-3-8b", "bf16": True, "cutoff_len": 512, "pairs_max_new_tokens": 512}
VERIFIER = {"judge": "exact", "expected_column": "answer"}
"""A judge without a model."""


@pytest.fixture
def shapes(monkeypatch):
    from sepo.hosts.llamafactory.plan import weights

    monkeypatch.setattr(weights, "model_config", lambda spec, **_: SHAPES[spec.model]())


def phases(**keys):
    return {phase.name: phase.items for phase in pairs_account({**MODEL, **keys}, on_gpu=True).phases}


def test_sampling_is_the_weights_and_the_keys_and_values_of_a_batch(shapes):
    (sampling,) = phases(**VERIFIER, pairs_batch_tokens=16384).values()
    assert sampling["policy"] == pytest.approx(8.03e9 * 2, rel=1e-3)
    assert sampling["keys and values"] == pytest.approx(32 * 2 * 8 * 128 * 2 * 16384, rel=0.04)
    (half,) = phases(**VERIFIER, pairs_batch_tokens=8192).values()
    assert half["keys and values"] == pytest.approx(sampling["keys and values"] / 2, rel=0.04)
    (packed,) = phases(**VERIFIER, quantization_bit=4).values()
    assert packed["policy"] < 0.4 * sampling["policy"]


def test_a_reward_model_is_in_memory_without_the_policy_and_has_no_head(shapes):
    found = phases(judge="reward_model", judge_model="qwen2.5-7b", adapter_name_or_path="not made yet")
    assert list(found) == ["sampling", "judging"]
    assert "policy" not in found["judging"]
    assert found["judging"]["reward model"] == pytest.approx(2 * (7.6156e9 - 3584 * 152064), rel=1e-3)


def test_the_policys_own_preference_needs_its_reference(shapes):
    keys = {"judge": "policy", "adapter_name_or_path": "a"}
    assert "reference" not in phases(**keys)["judging"]  # the policy without its adapter
    judging = phases(**keys, ref_model="qwen2.5-0.5b")["judging"]
    assert judging["policy"] > judging["reference"] > 0


def test_a_smaller_batch_is_proposed_if_it_fits(shapes):
    recipe = {**MODEL, **VERIFIER, "pairs_batch_tokens": 65536}
    account = pairs_account(recipe, on_gpu=True)
    assert fitting_batch(recipe, account, limit=None) is fitting_batch(recipe, account, limit=1e12) is None
    tokens, peak = fitting_batch(recipe, account, limit=21e9)
    assert peak <= 21e9 < account.peak.total
    assert pairs_account({**recipe, "pairs_batch_tokens": 2 * tokens}, on_gpu=True).peak.total > 21e9
    assert fitting_batch(recipe, account, limit=1e9) is None


def recipe_of(world, tmp_path, **keys):
    none = {"oracle_model": None, "oracle_base_model": None, "token_scores_dir": None}
    made = sepo_recipe(world, tmp_path / "out", **{"stage": "minor_dpo", **none, **keys})
    return write({**made, **VERIFIER, "pairs_max_new_tokens": 8}, tmp_path / "recipe.yaml")


def test_the_command_plans_sampling_alone_or_with_training(world, tmp_path, capsys):
    alone = recipe_of(world, tmp_path, stage=None)
    assert main(["plan", str(alone), "-o", str(tmp_path / "plan.json")]) == 0
    assert "fits this machine's free memory" in capsys.readouterr().out
    most = json.loads((tmp_path / "plan.json").read_text())["pairs"]["peak"]["bytes"]
    less = int(0.95 * most / 2**20)
    assert main(["plan", str(alone), "--gpu", f"{less}MiB", "-o", str(tmp_path / "plan.json")]) == 0
    printed = capsys.readouterr().out
    assert "peak: sampling" in printed
    assert "fits with pairs_batch_tokens: " in printed
    assert "judge exact loads no model" in printed
    values = json.loads((tmp_path / "plan.json").read_text())
    assert list(values) == ["pairs"]
    assert values["pairs"]["fits_with"]["peak"] <= less * 2**20 < values["pairs"]["peak"]["bytes"]
    both = recipe_of(world, tmp_path)
    assert main(["plan", str(both), "-o", str(tmp_path / "plan.json")]) == 0
    assert "peak: training" in capsys.readouterr().out
    values = json.loads((tmp_path / "plan.json").read_text())
    assert values["peak"]["phase"] == "training"
    assert values["pairs"]["peak"]["phase"] == "sampling"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tokens", "5"], "--tokens is for batches of training"),
        (["pairs_samples=1"], "pairs_samples is 1, expected a whole number of at least 2"),
        (["model_name_or_path="], "model_name_or_path is missing"),
    ],
)
def test_refusals_are_one_line(world, tmp_path, capsys, words, message):
    recipe = recipe_of(world, tmp_path, stage=None)
    assert main(["plan", str(recipe), *words]) == 2
    assert message in capsys.readouterr().err


def test_what_cannot_be_planned_yet_is_a_dash_in_a_dry_run(world, tmp_path):
    recipe = {"model_name_or_path": str(tmp_path / "later"), **VERIFIER}
    with pytest.raises(SepoError):
        pairs_account(recipe, on_gpu=False)
    assert pairs_peak_in_words(recipe) == "-"
    assert pairs_peak_in_words({**recipe, "model_name_or_path": str(world / "policy")}).endswith("iB")
