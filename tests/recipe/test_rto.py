"""Recipes of stage rto: resolved keys, refusals before anything is loaded, and the host's arguments."""

import pytest

from sepo.errors import SepoError
from sepo.recipe.rto import ONLINE_SCORERS, RtoMethod, RtoSelection, resolve_rto

HOST_KEYS = (
    "model_name_or_path", "stage", "do_train", "dataset", "eval_dataset", "val_size", "eval_strategy", "do_eval",
    "packing", "streaming", "max_new_tokens", "temperature", "pref_beta", "pref_loss", "quantization_bit",
    "finetuning_type", "ref_model", "ref_model_adapters", "output_dir", "ppo_epochs", "tokenized_path",
)  # fmt: skip
RECIPE = {
    "model_name_or_path": "policy", "stage": "rto", "do_train": True, "dataset": "questions", "judge": "exact",
    "expected_column": "answer", "oracle_model": "oracle", "oracle_base_model": "base",
}  # fmt: skip
GRPO = {"rto_beta1": 0, "rto_beta2": 0, "oracle_model": None, "oracle_base_model": None}


def resolved(**changes):
    return resolve_rto({**RECIPE, **changes}, host_keys=HOST_KEYS)


def test_defaults_are_those_of_the_authors_and_of_trl():
    host, settings = resolved()
    assert host == {"model_name_or_path": "policy", "do_train": True, "dataset": "questions", "stage": "dpo",
                    "pref_loss": "sigmoid"}  # fmt: skip
    rto = settings.rto
    assert rto == RtoMethod() == RtoMethod(
        beta1=0.05, beta2=0.01, oracle_clip=None, samples=8, max_new_tokens=256, temperature=1.0, top_p=1.0,
        scale="batch", clip=0.2, iterations=1, loss_type="dapo", kl_beta=0.0, select=None,
    )  # fmt: skip
    assert (rto.needs_oracle, rto.needs_reference, rto.needs_policy_pass) == (True, True, True)
    assert settings.oracle.oracle.model == "oracle"
    assert settings.rewards.judge == "exact"
    assert [key for key, _ in settings.models] == ["oracle_model", "oracle_base_model"]
    assert "all hyperparameters have the defaults of objective rto" in settings.first_screen


def test_grpo_needs_neither_oracle_nor_reference():
    host, settings = resolved(**GRPO)
    rto = settings.rto
    assert (rto.needs_oracle, rto.needs_reference, rto.needs_policy_pass) == (False, False, False)
    assert host["pref_loss"] == "simpo"  # with which the host loads no reference
    assert settings.oracle is None
    assert resolved(**GRPO, rto_kl_beta=0.1)[0]["pref_loss"] == "sigmoid"


def test_every_key_sets_its_field():
    values = {
        "rto_samples": 4, "rto_beta1": 0.1, "rto_beta2": 0.2, "rto_oracle_clip": 0.3, "rto_max_new_tokens": 9,
        "rto_temperature": 0.5, "rto_top_p": 0.9, "rto_scale": "none", "rto_clip": 0.1, "rto_iterations": 2,
        "rto_loss": "grpo", "rto_kl_beta": 0.04, "head_chunk_tokens": 7,
    }  # fmt: skip
    _, settings = resolved(**values, token_scorer="entropy", select_ratio=0.5, select_rule="quantile")
    assert settings.rto == RtoMethod(
        samples=4, beta1=0.1, beta2=0.2, oracle_clip=0.3, max_new_tokens=9, temperature=0.5, top_p=0.9, scale="none",
        clip=0.1, iterations=2, loss_type="grpo", kl_beta=0.04, head_chunk_tokens=7,
        select=RtoSelection("entropy", 0.5, "quantile"),
    )  # fmt: skip
    assert len(settings.overview.changed) == 12
    record = settings.as_dict()
    assert record["select"] is None
    assert record["sampled_select"] == {"scorer": "entropy", "ratio": 0.5, "rule": "quantile"}
    assert record["hyperparameters"]["beta1"] == 0.1


@pytest.mark.parametrize("scorer", ONLINE_SCORERS)
def test_scorers_have_the_ratios_of_their_papers(scorer):
    keys = {} if scorer == "oracle" else GRPO
    _, settings = resolved(**keys, token_scorer=scorer)
    assert settings.rto.select == RtoSelection(scorer, {"oracle": 0.3, "entropy": 0.2, "confidence": 0.3}[scorer])
    assert settings.rto.needs_policy_pass


def test_an_oracle_selects_without_rewarding():
    _, settings = resolved(rto_beta1=0, token_scorer="oracle")
    assert settings.rto.needs_oracle
    assert settings.oracle is not None


def test_adapters_of_the_reference_alone_are_over_the_policys_model():
    host, settings = resolved(ref_model_adapters="sft")
    assert host["ref_model"] == "policy"
    assert settings.ref_model.adapters == ("sft",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"oracle_model": None, "oracle_base_model": None},
         "no oracle is named, and stage rto with rto_beta1: 0.05 needs one: set oracle_model"),
        ({"oracle_model": None, "oracle_base_model": None, "rto_beta1": 0, "token_scorer": "oracle"},
         "no oracle is named, and stage rto with token_scorer: oracle needs one"),
        ({"rto_beta1": 0}, "oracle_model is set, but rto_beta1 is 0 and token_scorer is not oracle, so no oracle is"),
        ({**GRPO, "ref_model": "r"}, "ref_model is set, but rto_beta2 and rto_kl_beta are 0, so no reference is used"),
        ({"judge": None, "expected_column": None}, "judge is missing; set it to one of exact, contains"),
        ({"judge": "exakt"}, "judge is 'exakt', expected one of exact"),
        ({"expected_column": None}, "judge is exact, but expected_column is missing"),
        ({"rto_samples": 1}, "rto_samples is 1, expected a whole number of at least 2"),
        ({"rto_beta1": -1}, "rto_beta1 is -1.0, expected a finite number of at least 0"),
        ({"rto_temperature": 0}, "rto_temperature is 0.0, expected a positive number"),
        ({"rto_scale": "std"}, "rto_scale is 'std', expected one of group, batch, none"),
        ({**GRPO, "rto_oracle_clip": 0.1}, "rto_oracle_clip is set, but rto_beta1 is 0; remove rto_oracle_clip"),
        ({"rto_sample": 4}, "unknown key 'rto_sample'. Did you mean 'rto_samples'"),
        ({"objective": "dpo"}, "objective is set, but it belongs to the stages that train on pairs"),
        ({"pref_beta": 0.1}, "pref_beta is set, but it belongs to the stages that train on pairs"),
        ({"select_scope": "pair"}, "select_scope is set, but it belongs to the stages that train on pairs"),
        ({"select_ratio": 0.3}, "select_ratio is set, but token_scorer is none, so every token is selected"),
        ({"token_scorer": "policy_ref"}, "token_scorer is 'policy_ref', expected one of none, oracle, entropy"),
        ({"max_new_tokens": 9}, "max_new_tokens is set, but stage rto reads rto_max_new_tokens"),
        ({"packing": True}, "packing is set, but nothing is packed, as responses are sampled; remove packing"),
        ({"streaming": True}, "streaming is set, but TRL's sampler of prompts needs their number"),
        ({"eval_strategy": "steps"}, "eval_strategy is steps, but there is nothing to evaluate on; set eval_dataset"),
        ({"quantization_bit": 4, "finetuning_type": "full"}, "finetuning_type is full and quantization_bit is 4"),
        ({"oracle_model_revision": "v1", "oracle_model": None, "oracle_model_adapters": "a"},
         "oracle_model_revision is set, but oracle_model is not"),
    ],
)  # fmt: skip
def test_refused_before_anything_is_loaded(changes, message):
    with pytest.raises(SepoError) as error:
        resolve_rto({k: v for k, v in {**RECIPE, **changes}.items() if v is not None}, host_keys=HOST_KEYS)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_keys_without_effect_are_noted():
    _, settings = resolved(ppo_epochs=2, pairs_samples=4)
    assert any("ppo_epochs" in note for note in settings.notes)
    assert any(
        "pairs_samples is set, but has no effect in this stage: sepo pairs reads it" in n for n in settings.notes
    )


def test_a_command_line_is_split_as_a_recipe():
    words = [word for name, value in RECIPE.items() for word in (f"--{name}", str(value))]
    host, settings = resolve_rto([*words, "--rto_samples", "4"], host_keys=HOST_KEYS)
    assert settings.rto.samples == 4
    assert host[-4:] == ["--stage", "dpo", "--pref_loss", "sigmoid"]
    assert not any(word.startswith(("--rto", "--judge", "--oracle")) for word in host)


def test_a_key_of_the_stage_in_another_one():
    from sepo.recipe.resolve import resolve

    recipe = {"stage": "minor_dpo", "model_name_or_path": "m", "rto_beta1": 0.1}
    with pytest.raises(SepoError, match="rto_beta1 is set, but it belongs to stage rto; set stage: rto, or remove"):
        resolve(recipe, host_keys=HOST_KEYS)
