"""`ref_precompute`: identity of the stored log-probabilities, refused input, and a run compared with one without it."""

import contextlib
import json
from types import SimpleNamespace

import pytest
import torch

from sepo.errors import SepoError
from sepo.forward.sequences import LogProbScorer, ScoringModel
from sepo.recipe.model_specs import ModelSpec
from sepo.recipe.reference import PrecomputedReference
from sepo.scoring import reference as reference_scores
from sepo.scoring.reference import ReferenceScores
from sepo.scoring.stored_columns import row_sequences
from tests.support.hub import LocalModels
from tests.support.recipes import logged, sepo_recipe, sepo_train
from tests.support.rows import rows
from tests.support.tolerance import LOG_PROB


@pytest.fixture
def scorer(world, tmp_path, monkeypatch):
    """Return a function that creates a scorer; its `loaded` lists the models that were loaded."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    loaded = []

    def load(spec, *, model_args, device, key):
        loaded.append(spec)
        model = LlamaForCausalLM.from_pretrained(spec.model, dtype=torch.float32).eval()
        return ScoringModel(model, contextlib.nullcontext)

    monkeypatch.setattr(reference_scores, "load_scoring_model", load)

    def make(model="base", key="ref_model", cutoff_len=128, rope_scaling=None, **precision):
        settings = SimpleNamespace(
            precomputed_reference=PrecomputedReference(ModelSpec(str(world / model)), key),
            token_scores_dir=str(tmp_path / "scores"), score_batch_tokens=64, head_chunk_tokens=None,
        )  # fmt: skip
        made = ReferenceScores(
            settings,
            tokenizer=AutoTokenizer.from_pretrained(world / "policy"),
            model_args=LocalModels(
                model_name_or_path=str(world / "policy"), compute_dtype=torch.float32, rope_scaling=rope_scaling,
            ),
            data_args=SimpleNamespace(template="chatml", cutoff_len=cutoff_len),
            training_args=SimpleNamespace(
                world_size=1, process_index=0, device=torch.device("cpu"), output_dir="out",
                **{"bf16": False, "fp16": False, "deepspeed_plugin": None, **precision},
            ),
        )  # fmt: skip
        made.loaded = loaded
        return made

    return make


@torch.no_grad()
def by_hand(folder, ids, first):
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [logps[t - 1, ids[t]].item() for t in range(first, len(ids))]


def test_every_response_token_has_its_log_probability_and_is_computed_once(scorer, world):
    data = rows((2, 5), (7, 1), (1, 3))
    first = scorer()
    joined = first.attach(data, name="train")
    for side in ("chosen", "rejected"):
        for ids, logps in zip(joined[f"{side}_input_ids"], joined[f"{side}_ref_logps"], strict=True):
            assert logps == pytest.approx(by_hand(world / "base", ids, 3), abs=LOG_PROB)
    first.free()
    again = scorer().attach(data, name="train")
    assert again.to_dict() == joined.to_dict()
    assert len(first.loaded) == 1


def test_another_reference_cutoff_rope_or_row_is_another_store(scorer):
    variants = ({}, {"model": "oracle"}, {"cutoff_len": 64}, {"rope_scaling": "linear"})
    stores = set()
    for overrides in variants:
        made = scorer(**overrides)
        made.attach(rows((2, 1), (1, 3)), name="train")
        stores.add(made.stores["train"])
    made = scorer()
    made.attach(rows((2, 1), (1, 2)), name="train")
    assert len({*stores, made.stores["train"]}) == len(variants) + 1


@torch.no_grad()
@pytest.mark.parametrize("plugin", [None, "deepspeed"])
def test_the_reference_runs_in_the_precision_of_training(scorer, world, plugin):
    """The reference runs under autocast as with accelerate, or with cast weights as with DeepSpeed."""
    from transformers import LlamaForCausalLM

    data = rows((9, 1), (7, 3))
    model = LlamaForCausalLM.from_pretrained(world / "base", dtype=torch.bfloat16 if plugin else torch.float32).eval()
    sequences = row_sequences(data[:])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=plugin is None):
        expected = LogProbScorer(ScoringModel(model, contextlib.nullcontext), batch_tokens=64).score(sequences)
    found = scorer(bf16=True, deepspeed_plugin=plugin).attach(data, name="train")
    unmixed = scorer().attach(data, name="train")
    assert [*found["chosen_ref_logps"], *found["rejected_ref_logps"]] == [row.tolist() for row in expected]
    assert found["chosen_ref_logps"] != unmixed["chosen_ref_logps"]


def test_rows_with_media_are_refused(scorer):
    data = rows((2, 1), (1, 3)).add_column("images", [None, ["a.png"]])
    with pytest.raises(SepoError, match=r"rows of train have images, .* remove ref_precompute"):
        scorer().attach(data, name="train")
    assert scorer().attach(data.remove_columns("images").add_column("images", [None, None]), name="train")


@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), "a token of row 0 the log-probability nan, expected a finite number"), (0.0, "the probability 1")],
)
def test_numbers_that_are_not_log_probabilities_are_refused(scorer, monkeypatch, value, message):
    def score(self, sequences, *, pairs, on_batch):
        return [torch.full((sequence.response_tokens,), value) for sequence in sequences]

    monkeypatch.setattr(reference_scores.LogProbScorer, "score", score)
    with pytest.raises(SepoError, match=message):
        scorer().attach(rows((2, 1), (1, 3)), name="train")


@pytest.mark.host
def test_full_fine_tuning_goes_the_same_way_without_a_second_model(world, tmp_path):
    keys = {
        "stage": "selective_dpo", "oracle_model": None, "oracle_base_model": None, "finetuning_type": "full",
        "lora_rank": None, "lora_target": None, "ref_model": str(world / "base"), "val_size": 4, "max_steps": 3,
        "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no",
    }  # fmt: skip
    done = {}
    for name, more in (("live", {}), ("stored", {"ref_precompute": True})):
        done[name] = sepo_train(sepo_recipe(world, tmp_path / name, **keys, **more), tmp_path, name=f"{name}.yaml")
    created = "Created reference model"
    assert created in done["live"].stdout + done["live"].stderr
    assert created not in done["stored"].stdout + done["stored"].stderr
    live, stored = logged(tmp_path / "live"), logged(tmp_path / "stored")
    assert len(live) == len(stored)
    assert sum("eval_loss" in entry for entry in live) >= 1
    for expected, found in zip(live, stored, strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=LOG_PROB)
        for name in ("loss", "eval_loss"):
            assert found.get(name) == pytest.approx(expected.get(name), abs=LOG_PROB)
    settings = json.loads((tmp_path / "stored" / "sepo_settings.json").read_text())
    assert settings["ref_precompute"]["model"] == str(world / "base")
    assert len(settings["reference_scores"]) == 2  # training and evaluation
