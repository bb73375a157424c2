"""Stages and objectives other than `sepo`, in real runs of the host's trainer on tiny models."""

import json
import math
import shutil

import pytest

from sepo.runs.log_reader import read_log
from tests.support.recipes import adapter, host_recipe, logged, same_weights, sepo_recipe, sepo_train
from tests.support.tolerance import LOG_PROB

pytestmark = pytest.mark.host

NO_ORACLE = {"oracle_model": None, "oracle_base_model": None, "token_scores_dir": None}


def stage_recipe(world, output, stage, **overrides):
    return sepo_recipe(world, output, **{"stage": stage, **NO_ORACLE, **overrides})


def training(output):
    return [entry for entry in logged(output) if "loss" in entry]


def test_sepo_dpo_equals_the_hosts_dpo(world, tmp_path):
    """Losses, rewards and weights equal those of the host's own trainer, which uses full padded logits."""
    sepo_train(host_recipe(world, tmp_path / "host", pref_beta=0.3), tmp_path, name="host.yaml")
    recipe = stage_recipe(world, tmp_path / "sepo", "minor_dpo", objective="dpo", pref_beta=0.3)
    sepo_train(recipe, tmp_path, name="sepo.yaml")
    for host, entry in zip(training(tmp_path / "host"), training(tmp_path / "sepo"), strict=True):
        for name in ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"):
            assert entry[name] == pytest.approx(host[name], rel=1e-4, abs=LOG_PROB), name
        assert entry["select/chosen_ratio"] == 1.0
    first, second = adapter(tmp_path / "sepo"), adapter(tmp_path / "host")
    assert all((first[name] - second[name]).abs().max() < 1e-5 for name in first)


def test_minor_dpo_stage_clamps_and_reports_it(world, tmp_path):
    sepo_train(stage_recipe(world, tmp_path / "out", "minor_dpo", learning_rate=3e-2, pref_beta=0.2), tmp_path)
    entries = training(tmp_path / "out")
    assert entries[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)  # the policy is its reference
    assert all(0 <= entry["objective/rejected_clamped"] <= 1 for entry in entries)
    assert all(entry["rewards/rejected"] >= 0 for entry in entries)
    assert entries[-1]["kl/chosen"] != 0


def test_a_run_is_warned_of_once_against_the_first_pairs_of_its_log(world, tmp_path):
    """The log of a run that is resumed is changed, so that its chosen tokens seem to have lost 100 nats."""
    recipe = stage_recipe(
        world, tmp_path / "out", "minor_dpo", objective="simpo", max_steps=7, gradient_accumulation_steps=8,
        save_steps=4, save_strategy="steps",
    )  # fmt: skip
    first = sepo_train(recipe, tmp_path)
    assert read_log(tmp_path / "out").warnings == []
    log = tmp_path / "out" / "sepo_log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        if line["event"] == "log" and line["step"] <= 2 and "logps/chosen_mean" in line:
            line["logps/chosen_mean"] += 100
    log.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (tmp_path / "out" / "checkpoint-7").rename(tmp_path / "last")
    resumed = sepo_train({**recipe, "resume_from_checkpoint": str(tmp_path / "out" / "checkpoint-4")}, tmp_path)
    (warning,) = read_log(tmp_path / "out").warnings
    assert warning["step"] == 6  # 16 pairs per step: two steps are the first 32, four the latest 64
    printed = [done.stdout + done.stderr for done in (first, resumed)]
    assert [text.count("the chosen responses have lost") for text in printed] == [0, 1]
    assert f"step 6: {warning['text']}" in printed[1]


def test_selective_dpo_stage_selects_live_against_a_named_reference(world, tmp_path):
    recipe = stage_recipe(
        world, tmp_path / "out", "selective_dpo", ref_model=str(world / "base"), val_size=4, eval_strategy="steps",
        eval_steps=2, do_eval=True,
    )  # fmt: skip
    sepo_train(recipe, tmp_path)
    for entry in training(tmp_path / "out"):
        assert 0.3 < entry["select/chosen_ratio"] <= 0.4
        assert 0.3 < entry["select/rejected_ratio"] <= 0.4
        assert abs(entry["kl/chosen"]) > 1e-3  # the reference is another model, from the first step
    evaluations = [entry for entry in logged(tmp_path / "out") if "eval_loss" in entry]
    assert all(0.3 < entry["eval_select/chosen_ratio"] <= 0.4 for entry in evaluations)


def test_an_oracle_selects_for_minor_dpo(world, tmp_path):
    recipe = sepo_recipe(world, tmp_path / "out", objective="minor_dpo", token_scorer="oracle", select_ratio=0.5)
    sepo_train(recipe, tmp_path)
    entries = training(tmp_path / "out")
    assert entries[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert all(0.4 < entry["select/chosen_ratio"] <= 0.5 for entry in entries)


def test_tdpo2_stage_starts_at_log_2_and_reports_its_divergence(world, tmp_path):
    recipe = stage_recipe(
        world, tmp_path / "out", "minor_dpo", objective="tdpo2", tdpo_alpha=0.7, max_steps=2, learning_rate=3e-2
    )
    sepo_train(recipe, tmp_path)
    first, second = training(tmp_path / "out")
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["kl/chosen_full"] == first["kl/rejected_full"] == 0.0
    assert second["loss"] != pytest.approx(math.log(2), abs=1e-4)
    assert second["kl/chosen_full"] > 0 < second["kl/rejected_full"]


def test_otpo_stage_starts_at_log_2_and_reports_the_effective_tokens(world, tmp_path):
    keys = {"objective": "otpo", "otpo_reg": 0.05, "otpo_reg_m": 0.5, "max_steps": 2, "learning_rate": 3e-2}
    sepo_train(stage_recipe(world, tmp_path / "out", "minor_dpo", **keys), tmp_path)
    first, second = training(tmp_path / "out")
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert second["loss"] != pytest.approx(math.log(2), abs=1e-4)
    for entry in (first, second):
        assert entry["select/chosen_ratio"] == 1.0
        assert 1 < entry["select/chosen_effective"] + entry["select/rejected_effective"] < entry["select/tokens"]
    settings = json.loads((tmp_path / "out" / "sepo_settings.json").read_text())
    assert {"reg": 0.05, "reg_m": 0.5}.items() <= settings["hyperparameters"].items()


@pytest.fixture(scope="module")
def sft_adapter(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft")
    recipe = host_recipe(world, folder / "out", stage="sft", dataset="tiny_plain", learning_rate=3e-2)
    sepo_train(recipe, folder)
    return folder / "out"


def test_a_run_that_continues_from_an_adapter_has_it_in_its_reference(world, sft_adapter, tmp_path):
    """The host would silently use the raw base as the reference; its first loss would not be log 2.

    (dpo, because minor_dpo starts at the kink of its clamp, where the last bit of the reference decides the gradient.)
    """
    keys = {"objective": "dpo", "adapter_name_or_path": str(sft_adapter), "save_steps": 2}
    recipe = stage_recipe(world, tmp_path / "out", "minor_dpo", **keys)
    done = sepo_train(recipe, tmp_path)
    assert "the reference is the starting policy, with a frozen copy of its adapter" in done.stdout
    entries = training(tmp_path / "out")
    assert entries[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert entries[0]["kl/chosen"] == 0
    # The same run with the reference as a separate model.
    named = {
        **recipe, "output_dir": str(tmp_path / "named"), "ref_model": str(world / "policy"),
        "ref_model_adapters": str(sft_adapter),
    }  # fmt: skip
    sepo_train(named, tmp_path, name="named.yaml")
    for entry, other in zip(entries, training(tmp_path / "named"), strict=True):
        assert entry["loss"] == pytest.approx(other["loss"], abs=LOG_PROB)
    # The same run with precomputed log-probabilities of the starting policy.
    stored = {**recipe, "output_dir": str(tmp_path / "stored"), "token_scores_dir": str(tmp_path / "scores")}
    done = sepo_train({**stored, "ref_precompute": True}, tmp_path, name="stored.yaml")
    assert "a frozen copy of the adapter" not in done.stdout
    for entry, other in zip(entries, training(tmp_path / "stored"), strict=True):
        assert entry["loss"] == pytest.approx(other["loss"], abs=LOG_PROB)
    # Resumed from the middle, the reference is still the adapter that training started from.
    shutil.copytree(tmp_path / "out" / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    sepo_train({**recipe, "output_dir": str(tmp_path / "again")}, tmp_path, name="again.yaml")
    assert same_weights(adapter(tmp_path / "again"), adapter(tmp_path / "out"))
