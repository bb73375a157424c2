"""Runs in Axolotl: four stages, adapters, quantized and full training, records; no change without the block `sepo`."""

import copy
import json
import os

import pytest
import torch

from sepo.errors import SepoError
from tests.support import axo
from tests.support.experts import save_experts


@pytest.mark.parametrize("stage", axo.STAGES)
def test_four_steps_of_a_stage_on_real_pairs(root, tmp_path, train, losses, stage):
    output = tmp_path / "out"
    rows = [axo.rows_at(root / "pandalm.jsonl")]
    trainer = train(axo.config(root, output, rl=stage, datasets=rows, sepo=axo.block(root, output, stage)))
    seen = losses(trainer)
    assert len(seen) == 4
    assert all(torch.isfinite(torch.tensor(seen)))

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(root / "policy"), output)
    assert any(bool(weight.any()) for name, weight in model.named_parameters() if "lora_B" in name)

    entries = [json.loads(line) for line in (output / "sepo_log.jsonl").read_text().splitlines()]
    first = next(entry for entry in entries if "loss" in entry)
    expected = {"sepo": (0.0, 0.35), "selective_dpo": (0.0, 0.45), "treg": (1.0, 1.0), "minor_dpo": (1.0, 1.0)}[stage]
    assert expected[0] <= first["select/chosen_ratio"] <= expected[1]
    settings = json.loads((output / "sepo_settings.json").read_text())
    assert settings["stage"] == stage
    store = {"sepo": "token_scores", "treg": "token_reward_scores"}.get(stage)
    if store:
        assert os.path.isdir(settings[store]["train"])
    recorded = [json.loads(line) for line in (output / "_sepo_tokens.jsonl").read_text().splitlines()]
    assert {line["step"] for line in recorded} == {1, 2, 3, 4}
    assert all(line["row"] is not None for line in recorded)
    made_with = json.loads((output / "_sepo_recipe.json").read_text())
    assert made_with["recipe"]["sepo"]["stage"] == stage
    assert "axolotl" in made_with["versions"]


@pytest.mark.parametrize(
    ("block", "start"),
    [
        ({"objective": {"dpo": 0.8, "orpo": 0.2}}, None),
        ({"objective": "tgdpo", "pref_beta": 0.5}, 0.6931472),
        ({"objective": "tgdpo", "pref_beta": 0.5, "ref_precompute": True}, 0.6931472),
        ({"objective": "sampo"}, 0.6931472),
    ],
    ids=["sum", "tgdpo", "tgdpo precomputed", "sampo"],
)
def test_runs_of_weighted_objectives_and_of_a_sum(root, tmp_path, train, losses, block, start):
    """By `rl: dpo` and a stage in the block, on real pairs, with an evaluation."""
    output = tmp_path / "out"
    with_oracle = "sepo" if block["objective"] == "tgdpo" else "minor_dpo"
    made = axo.config(
        root, output, rl="dpo", trainer_cls="sepo.hosts.axolotl.trainer.PreferenceTrainer",
        datasets=[axo.rows_at(root / "pandalm.jsonl")], max_steps=2, val_set_size=0.2, eval_steps=2,
        sepo={"stage": "sepo", **axo.block(root, output, with_oracle), **block},
    )  # fmt: skip
    trainer = train(made)
    seen = losses(trainer)
    assert len(seen) == 2
    assert all(torch.isfinite(torch.tensor(seen)))
    if start is not None:
        assert seen[0] == pytest.approx(start, abs=1e-4)
    *_, evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    weighs = block["objective"] == "tgdpo"
    assert ("eval_select/chosen_effective" in evaluated) == weighs
    settings = json.loads((output / "sepo_settings.json").read_text())
    assert settings["objective"] == ("dpo+orpo" if isinstance(block["objective"], dict) else block["objective"])
    assert json.loads((output / "_sepo_recipe.json").read_text())["recipe"]["sepo"]["objective"] == block["objective"]


@pytest.mark.parametrize(("objective", "weight", "step"), [("dpo", 0.0, 4), ("simpo", 0.01, 6)])
def test_a_run_is_warned_of_once(root, tmp_path, train, caplog, monkeypatch, objective, weight, step):
    """With and without a reference, with a bound that every run passes; the advice has the run's `pref_ftx`."""
    monkeypatch.setattr("sepo.runs.runaway.BOUND", -1000.0)
    made = axo.config(
        root, tmp_path / "out", rl="minor_dpo", sepo={"objective": objective, "pref_ftx": weight},
        gradient_accumulation_steps=8, max_steps=7,
    )  # fmt: skip
    with caplog.at_level("WARNING", logger="sepo"):
        train(made)
    texts = [text for text in caplog.messages if "the chosen responses have lost" in text]
    assert len(texts) == 1
    # 16 pairs per step: the latest 64, without a reference after the first 32.
    assert texts[0].startswith(f"step {step}: ")
    assert ("Set a greater pref_ftx than 0.01" if weight else "Set pref_ftx: 0.2") in texts[0]


def test_a_score_without_a_weight_is_refused_before_training(root, tmp_path, train):
    rows = [json.loads(line) for line in (root / "pairs.jsonl").read_text().splitlines()][:4]
    spans = {"chosen_spans": [], "rejected_spans": [{"start": 0, "end": 2, "weight": 1.0}]}
    path = axo.save_rows(tmp_path / "rows.jsonl", [{**row, **spans} for row in rows])
    made = axo.config(
        root, tmp_path / "out", rl="minor_dpo", sepo={"objective": "critical_dpo"}, datasets=[axo.rows_at(path)]
    )
    with pytest.raises(SepoError, match=r"row 0 of train: its rejected response, which starts with .* the score -1 at"):
        train(made)


def test_a_quantized_policy_and_its_store(root, tmp_path, train, losses, caplog):
    output = tmp_path / "out"
    made = axo.config(root, output, rl="sepo", sepo=axo.block(root, output, "sepo"), adapter="qlora", load_in_4bit=True)
    first = losses(train({**made, "max_steps": 2}))
    assert len(first) == 2
    with caplog.at_level("INFO", logger="sepo"):
        again = losses(train({**made, "max_steps": 2}))
    assert again == first  # a run that scores and one that finds the store start with the same weights


@pytest.mark.parametrize(("stage", "second"), [("sepo", False), ("minor_dpo", True)])
def test_full_training_loads_a_second_model_only_if_needed(root, tmp_path, train, losses, stage, second):
    output = tmp_path / "out"
    made = axo.config(root, output, rl=stage, sepo=axo.block(root, output, stage), adapter=None, max_steps=2)
    trainer = train({name: value for name, value in made.items() if not name.startswith("lora_")})
    assert (trainer.ref_model is not None) is second
    assert len(losses(trainer)) == 2


def test_a_live_and_a_precomputed_reference_give_the_same_losses(root, tmp_path, train, losses):
    output = tmp_path / "out"
    block = {**axo.block(root, output, "selective_dpo"), "ref_model": str(root / "base")}
    live = train(axo.config(root, output, rl="selective_dpo", sepo=block, max_steps=2))
    assert live.ref_model is not None
    stored = train(axo.config(root, output, rl="selective_dpo", sepo={**block, "ref_precompute": True}, max_steps=2))
    assert stored.ref_model is None
    assert losses(stored) == pytest.approx(losses(live), abs=1e-6)


@pytest.mark.parametrize("stage", ["sepo", "minor_dpo"])
def test_the_router_loss_of_a_mixture_of_experts(root, tmp_path, train, stage):
    """The first step has the same weights and pairs in both runs, so the losses differ by the router's term."""
    experts, output = save_experts(tmp_path / "experts", "Mixtral"), tmp_path / "out"
    more = {"sepo": axo.block(root, output, stage), "gradient_checkpointing": True, "max_steps": 2,
            "gradient_checkpointing_kwargs": {"use_reentrant": True}}  # fmt: skip
    made = axo.config(root, output, rl=stage, base_model=str(experts), **more)
    plain, *_ = train(made).state.log_history
    first, *_ = train({**made, "router_aux_loss_coef": 50.0}).state.log_history
    assert first["objective/router_loss"] > 2  # 2 of 5 experts per token: 2 if all are used alike
    assert first["loss"] == pytest.approx(plain["loss"] + 50 * first["objective/router_loss"], rel=1e-5)
    assert first["grad_norm"] > 1.2 * plain["grad_norm"]
    assert "objective/router_loss" not in plain


def test_a_router_loss_of_a_dense_model_is_refused_before_it_is_loaded(root, tmp_path, loaded):
    with pytest.raises(SepoError, match=r"base_model is .*: a model of the type llama has no experts"):
        loaded([], axo.block(root, tmp_path / "out", "sepo"), router_aux_loss_coef=0.1)


def test_evaluation_rows_are_scored_and_evaluated(root, tmp_path, train):
    output = tmp_path / "out"
    made = axo.config(root, output, rl="sepo", sepo=axo.block(root, output, "sepo"), val_set_size=0.25, max_steps=2)
    trainer = train({**made, "eval_steps": 2, "eval_batch_size": 2})
    evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert evaluated
    assert 0 < evaluated[-1]["eval_select/chosen_ratio"] < 0.4
    assert set(json.loads((output / "sepo_settings.json").read_text())["token_scores"]) == {"train", "eval"}


def test_without_a_sepo_stage_nothing_changes(root, tmp_path, train, losses):
    """Plain DPO has the same losses with the plugin and without it."""
    made = axo.config(root, tmp_path / "out", rl="dpo")
    with_plugin = train(copy.deepcopy(made))
    assert type(with_plugin).__module__.startswith("axolotl.")
    without = train({name: value for name, value in made.items() if name != "plugins"})
    assert losses(with_plugin) == losses(without)
    assert not list((tmp_path / "out").glob("*sepo*"))


def test_another_trainer_in_its_place_is_refused(root, tmp_path, train, monkeypatch):
    import axolotl.core.builders.rl as builder
    from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer

    class Other(AxolotlDPOTrainer):
        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

    monkeypatch.setattr(builder, "get_cls_from_module_str", lambda name: Other)
    output = tmp_path / "out"
    with pytest.raises(SepoError, match="expected the trainer of stage minor_dpo"):
        train(axo.config(root, output, rl="minor_dpo", sepo=axo.block(root, output, "minor_dpo")))
