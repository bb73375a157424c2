"""Stage `treg` in real runs of the host's trainer on tiny models."""

import json
import math

import pytest

from tests.support.recipes import logged, sepo_recipe, sepo_train

pytestmark = pytest.mark.host

NO_ORACLE = {"oracle_model": None, "oracle_base_model": None}


def training(output):
    return [entry for entry in logged(output) if "loss" in entry]


def settings_of(output):
    return json.loads((output / "sepo_settings.json").read_text())


def test_stage_treg_scores_trains_evaluates_and_finds_its_store(world, tmp_path):
    recipe = sepo_recipe(
        world, tmp_path / "out", stage="treg", max_steps=2, val_size=4, eval_strategy="steps", eval_steps=2, **NO_ORACLE
    )
    first = sepo_train(recipe, tmp_path)
    assert f"token rewards come from contrastive prompts to {world / 'policy'} (model_name_or_path)" in first.stdout
    entries = training(tmp_path / "out")
    evaluations = [entry for entry in logged(tmp_path / "out") if "eval_loss" in entry]
    assert len(entries) == 2
    for entry, prefix in (*((entry, "") for entry in entries), *((entry, "eval_") for entry in evaluations)):
        for side in ("chosen", "rejected"):
            assert 0 < abs(entry[f"{prefix}treg/reward_{side}"]) < 0.5
        assert 0 < entry[f"{prefix}objective/regularizer_share"] < 1
    # At the first step the policy is its reference: w = 1/2, and the loss is log 2 + alpha w L_reg.
    assert entries[0]["objective/treg_weight"] == pytest.approx(0.5)
    assert entries[0]["loss"] == pytest.approx(math.log(2) + entries[0]["objective/treg_loss"], abs=1e-5)
    assert entries[0]["kl/chosen"] == 0
    record = settings_of(tmp_path / "out")
    assert record["token_rewards"]["model"]["model"] == str(world / "policy")
    assert set(record["token_reward_scores"]) == {"train", "eval"}

    again = sepo_train({**recipe, "output_dir": str(tmp_path / "again")}, tmp_path, name="again.yaml")
    assert again.stdout.count("nothing to score") == 2
    assert logged(tmp_path / "again") == logged(tmp_path / "out")


def test_treg_over_an_oracles_selection_with_the_oracles_rewards(world, tmp_path):
    """One store is used for selection and rewards; no prompt is scored."""
    recipe = sepo_recipe(
        world, tmp_path / "out", max_steps=2, treg_alpha=0.5, treg_weighting="static", treg_rewards="oracle",
        select_ratio=0.5,
    )  # fmt: skip
    done = sepo_train(recipe, tmp_path)
    assert "token rewards come from the oracle" in done.stdout
    for entry in training(tmp_path / "out"):
        assert 0.4 < entry["select/chosen_ratio"] <= 0.5
        assert entry["treg/reward_chosen"] > 0 > entry["treg/reward_rejected"]  # the highest and the lowest scores
        assert entry["objective/treg_weight"] == 1
    record = settings_of(tmp_path / "out")
    assert "token_reward_scores" not in record
    assert len([path for path in (tmp_path / "scores").iterdir() if not path.name.startswith(".")]) == 1


def test_another_model_is_prompted_while_an_oracle_selects(world, tmp_path):
    recipe = sepo_recipe(
        world, tmp_path / "out", max_steps=2, objective="simpo_reg", token_scorer="oracle",
        treg_eval_model=str(world / "base"),
    )  # fmt: skip
    done = sepo_train(recipe, tmp_path)
    assert f"contrastive prompts to {world / 'base'} (treg_eval_model)" in done.stdout
    entries = training(tmp_path / "out")
    assert all(0.2 < entry["select/chosen_ratio"] <= 0.3 for entry in entries)
    assert all(entry["treg/reward_chosen"] != 0 for entry in entries)
    record = settings_of(tmp_path / "out")
    assert set(record["token_scores"]) == set(record["token_reward_scores"]) == {"train"}


def test_token_rewards_select_without_a_regularizer(world, tmp_path):
    """T-REG's rewards replace the oracle: SePO without an oracle, with the data set's threshold."""
    recipe = sepo_recipe(
        world, tmp_path / "out", max_steps=2, token_scorer="contrastive", select_ratio=0.5, select_scope="dataset",
        **NO_ORACLE,
    )  # fmt: skip
    done = sepo_train(recipe, tmp_path)
    assert f"contrastive prompts to {world / 'policy'} (model_name_or_path)" in done.stdout
    entries = training(tmp_path / "out")
    assert len(entries) == 2
    for entry in entries:
        assert 0 < entry["select/chosen_ratio"] < 1
        assert not any(name.startswith("treg/") for name in entry)
    assert settings_of(tmp_path / "out")["token_scorer"] == "contrastive"
