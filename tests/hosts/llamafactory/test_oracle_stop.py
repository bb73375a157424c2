"""Early stopping of an oracle by a metric of held-out pairs: the recipe of the step, and a run that keeps its best
checkpoint."""

import json

import pytest

from sepo.errors import SepoError
from sepo.hosts.llamafactory.chain_steps import plan_steps
from sepo.hosts.llamafactory.recipe import check_recipe, host_keys
from sepo.recipe.keys import ORACLE_KEYS
from sepo.recipe.oracle_stop import STOP_METRICS, stopping_keys
from sepo.recipe.resolve import resolve
from tests.support.recipes import adapter, same_weights, sepo_recipe, sepo_train

SHARED = {"model_name_or_path": "m", "template": "t", "dataset": "d", "dataset_dir": "data", "output_dir": "out"}


def oracle(**section):
    return {step.name: step.recipe for step in plan_steps({**SHARED, "save_steps": 500, "oracle": section})}


@pytest.mark.parametrize("stop", STOP_METRICS)
def test_the_oracle_alone_is_evaluated_on_pairs_that_are_held_out_of_its_own(stop):
    planned = oracle(stop=stop)
    made = planned["oracle"]
    metric, greater = STOP_METRICS[stop]
    assert (made["metric_for_best_model"], made["greater_is_better"]) == (metric, greater)
    assert (made["val_size"], made["eval_steps"], made["save_steps"]) == (0.1, 0.1, 0.1)
    assert made["load_best_model_at_end"]
    assert made["early_stopping_steps"] == 3
    assert "stop" not in made
    resolve(made, host_keys=host_keys())
    for name in ("base", "policy", "sample"):
        assert not {"early_stopping_steps", "val_size", "load_best_model_at_end"} & set(planned[name])


def test_keys_of_the_section_take_precedence_and_a_plain_oracle_has_none():
    made = oracle(stop="accuracy", eval_dataset="held_out", eval_steps=20, save_steps=40)["oracle"]
    assert (made["eval_dataset"], made["eval_steps"], made["save_steps"]) == ("held_out", 20, 40)
    assert "val_size" not in made
    assert oracle() == oracle(stop=None) == oracle(stop=ORACLE_KEYS["oracle.stop"].default)
    assert oracle(stop="never")["oracle"]["save_steps"] == 500


def test_both_models_of_a_reversed_oracle_stop_by_it():
    planned = oracle(stop="margin_per_size", kind="reversed")
    names = ("metric_for_best_model", "val_size", "early_stopping_steps")
    assert [planned["oracle_reversed"][name] for name in names] == [planned["oracle"][name] for name in names]


def test_a_metric_that_is_not_logged_is_refused(world, tmp_path):
    with pytest.raises(SepoError, match="stage is dpo, which does not log eval_oracle/margin_per_size; set"):
        oracle(stop="margin_per_size", stage="dpo")
    assert oracle(stop="accuracy", stage="dpo")["oracle"]["metric_for_best_model"] == "eval_rewards/accuracies"
    with pytest.raises(SepoError, match=r"oracle\.stop is 'early', expected one of never, loss"):
        oracle(stop="early")
    with pytest.raises(SepoError, match="objective sepo with token_scorer oracle do not log it"):
        check_recipe(sepo_recipe(world, tmp_path / "run", metric_for_best_model="oracle/size"))


@pytest.mark.host
def test_a_run_keeps_its_best_checkpoint_and_stops(world, tmp_path):
    """The rate is so high that the metric falls after its first values."""
    out = tmp_path / "out"
    keys = stopping_keys("margin_per_size", {}, stage="sepo")
    recipe = sepo_recipe(
        world, out, objective="dpo", oracle_model=None, oracle_base_model=None, max_steps=20, learning_rate=0.3,
        **{**keys, "val_size": 0.25, "early_stopping_steps": 1},
    )  # fmt: skip
    sepo_train(recipe, tmp_path)
    state = json.loads((out / "trainer_state.json").read_text())
    found = {
        entry["step"]: entry["eval_oracle/margin_per_size"]
        for entry in state["log_history"]
        if "eval_oracle/margin_per_size" in entry
    }
    best = max(found, key=found.get)
    assert state["best_metric"] == found[best]
    assert all(-1 <= value <= 1 for value in found.values())
    assert state["global_step"] < 20
    assert best < state["global_step"]
    assert same_weights(adapter(out), adapter(out / f"checkpoint-{best}"))
    assert not same_weights(adapter(out), adapter(out / f"checkpoint-{state['global_step']}"))
