"""The host's fine-tuning methods work with sepo's stages: quantization, kinds of adapters, whole modules, optimizers.

An adapter begins as nothing, so that every way has plain LoRA's first loss.
"""

import json
import sys

import pytest
import torch

from tests.support.recipes import STAGES, WORKER, adapter, environment, logged, run, sepo_recipe, sepo_train

pytestmark = pytest.mark.host

WAYS = {
    "plain": {},
    "rank-stabilized": {"use_rslora": True},
    "LoRA+": {"loraplus_lr_ratio": 16.0},
    "DoRA": {"use_dora": True},
    "norms in float32": {"upcast_layernorm": True},
    "head and embedding whole": {"additional_target": "embed_tokens,lm_head"},
    "some layers": {"lora_target": "q_proj,v_proj"},
    "reentrant checkpointing": {"use_reentrant_gc": True},
    "other checkpointing": {"use_reentrant_gc": False},
    "no checkpointing": {"disable_gradient_checkpointing": True},
    "8-bit optimizer": {"optim": "adamw_8bit"},
    "4 bits": {"quantization_bit": 4, "quantization_method": "bnb"},
    "4 bits, one quantization": {"quantization_bit": 4, "quantization_method": "bnb", "double_quantization": False},
    "8 bits": {"quantization_bit": 8, "quantization_method": "bnb"},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
    "full": {"finetuning_type": "full"},
    "bfloat16": {"bf16": True},
}
NOT_EXACT = {"4 bits", "4 bits, one quantization", "8 bits", "bfloat16"}


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    """Return a directory with the runs of every method, by stage; one process runs all of them."""
    folders = {stage: tmp_path_factory.mktemp(stage) for stage in STAGES}
    recipes = [
        sepo_recipe(world, folder / way.replace(" ", "-"), stage=stage, max_steps=2, max_samples=2,
                    disable_shuffling=True,
                    save_strategy="no", ref_model=str(world / "base") if stage != "sepo" else None,
                    **{**STAGES[stage], **keys})
        for stage, folder in folders.items()
        for way, keys in WAYS.items()
    ]  # fmt: skip
    folder = folders["sepo"]
    file = folder / "recipes.json"
    file.write_text(json.dumps(recipes))
    run([sys.executable, WORKER, file], cwd=folder, env=environment())
    return folders


def losses_of(folder, way):
    return [entry["loss"] for entry in logged(folder / way.replace(" ", "-")) if "loss" in entry]


@pytest.mark.parametrize("stage", STAGES)
def test_every_way_starts_at_the_same_loss_and_trains(runs, stage):
    folder = runs[stage]
    plain = losses_of(folder, "plain")
    for way in WAYS:
        found = losses_of(folder, way)
        assert len(found) == 2, way
        assert all(torch.isfinite(torch.tensor(found))), way
        tolerance = 0.25 if way in NOT_EXACT else 2e-5
        assert found[0] == pytest.approx(plain[0], abs=tolerance), f"{stage}, {way}"
        assert abs(found[1] - found[0]) > 1e-7, f"{stage}, {way}"  # the same batch, after an update


def test_unsupported_combinations_are_refused_before_anything_is_loaded(world, tmp_path):
    recipe = sepo_recipe(world, tmp_path / "out", quantization_bit=4, quantization_method="bnb", use_dora=True)
    done = sepo_train(recipe, tmp_path, expect=2)
    assert "use_dora is set and quantization_bit is 4" in done.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_modules_trained_whole_are_saved(runs, stage):
    folder = runs[stage]
    names = adapter(folder / "head-and-embedding-whole")
    assert any("lm_head" in name for name in names)
    assert any("embed_tokens" in name for name in names)
    assert any("lora_magnitude_vector" in name for name in adapter(folder / "DoRA"))
