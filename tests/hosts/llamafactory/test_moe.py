"""Mixtures of experts in real runs of the host: the router loss by `moe_aux_loss_coef`, under every engine."""

import json

import pytest
import torch

from tests.support.engines import finished, started
from tests.support.experts import save_experts
from tests.support.recipes import adapter, logged, sepo_recipe, sepo_train
from tests.support.tolerance import LOG_PROB

pytestmark = pytest.mark.host

WEIGHT = 50.0
"""So large that the gradient of the router loss is most of a step's: a run without it has other adapters."""
STAGES = {
    "sepo": {},
    "minor_dpo": {"oracle_model": None, "oracle_base_model": None, "objective": "dpo"},
}


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    return save_experts(tmp_path_factory.mktemp("experts") / "Qwen3Moe", "Qwen3Moe")


def moe_recipe(world, experts, output, **overrides):
    keys = {"model_name_or_path": str(experts), "moe_aux_loss_coef": WEIGHT, "lora_target": "q_proj,v_proj,o_proj"}
    return sepo_recipe(world, output, **{**keys, "max_steps": 2, **overrides})


def training(output):
    return [entry for entry in logged(output) if "loss" in entry]


@pytest.mark.parametrize("stage", STAGES)
def test_two_steps_with_and_without_the_router_loss(world, experts, tmp_path, stage):
    """The first step has the same weights and pairs in both runs, so the losses differ by the router's term."""
    runs = {}
    for name, weight in (("with", WEIGHT), ("without", None)):
        keys = {"stage": stage, **STAGES[stage], "moe_aux_loss_coef": weight}
        done = sepo_train(moe_recipe(world, experts, tmp_path / name, **keys), tmp_path, name=f"{name}.yaml")
        assert "each pair's prompt is computed once" in done.stdout + done.stderr
        runs[name] = training(tmp_path / name)
    first, plain = runs["with"][0], runs["without"][0]
    assert len(runs["with"]) == 2
    assert first["objective/router_loss"] > 2  # 2 of 6 experts per token: 2 if all are used alike
    assert first["loss"] == pytest.approx(plain["loss"] + WEIGHT * first["objective/router_loss"], rel=1e-6)
    assert "objective/router_loss" not in plain
    assert first["rewards/margins"] == pytest.approx(plain["rewards/margins"], abs=LOG_PROB)
    assert first["grad_norm"] > 1.2 * plain["grad_norm"]
    moved = [abs(a - b).max().item() for a, b in zip(*(adapter(tmp_path / n).values() for n in runs), strict=True)]
    assert max(moved) > 1e-5
    text = (tmp_path / "with" / "sepo_log.jsonl").read_text()
    assert "objective/router_loss" in text


def test_a_model_of_a_full_run_is_saved_without_router_logits(world, experts, tmp_path):
    """The host sets output_router_logits for the key; with it, the saved model could not generate."""
    keys = {"finetuning_type": "full", "lora_rank": None, "lora_target": None, "max_steps": 1}
    sepo_train(moe_recipe(world, experts, tmp_path / "out", **keys), tmp_path)
    assert training(tmp_path / "out")[0]["objective/router_loss"] > 2
    assert json.loads((tmp_path / "out" / "config.json").read_text())["output_router_logits"] is False


def engine_recipes(world, experts, folder, engine):
    pairs = 4 if engine == "one" else 2
    return [
        moe_recipe(
            world, experts, folder / stage, stage=stage, per_device_train_batch_size=pairs, disable_shuffling=True,
            gradient_accumulation_steps=2, max_steps=3, save_strategy="no", eval_dataset="tiny_pairs",
            eval_strategy="steps", eval_steps=3, per_device_eval_batch_size=5, **keys,
        )
        for stage, keys in STAGES.items()
    ]  # fmt: skip


def results(world, experts, folder, engine):
    """Run the stages; return logged losses, router losses, the evaluation's and saved adapters by stage."""
    recipes = engine_recipes(world, experts, folder, engine)
    finished(started(engine, recipes, folder, layer="Qwen3MoeDecoderLayer"), folder)
    found = {}
    for stage in STAGES:
        entries = logged(folder / stage)
        (evaluation,) = (entry for entry in entries if "eval_loss" in entry)
        steps = [entry for entry in entries if "loss" in entry]
        numbers = [step[name] for step in steps for name in ("loss", "objective/router_loss", "grad_norm")]
        numbers += [evaluation[f"eval_{name}"] for name in ("loss", "objective/router_loss")]
        found[stage] = (numbers, adapter(folder / stage))
    return found


@pytest.fixture(scope="module")
def one_process(world, experts, tmp_path_factory):
    return results(world, experts, tmp_path_factory.mktemp("one"), "one")


@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3", "fsdp2"])
def test_two_processes_give_what_one_gives(engine, world, experts, one_process, tmp_path):
    """With the host's gradient checkpointing, which is reentrant except under FSDP2."""
    found = results(world, experts, tmp_path, engine)
    for stage, (numbers, weights) in one_process.items():
        theirs, saved = found[stage]
        assert theirs == pytest.approx(numbers, rel=1e-4), stage
        for name, weight in weights.items():
            torch.testing.assert_close(saved[name], weight, rtol=0, atol=1e-5, msg=lambda m, s=stage: f"{s}: {m}")
