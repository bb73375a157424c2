"""Sepo's recipe keys: accepted values, refused values, and error messages with the remedy."""

from dataclasses import replace

import pytest

from sepo.errors import SepoError
from sepo.objectives import resolve_method
from sepo.objectives.presets import BUILT_IN as OBJECTIVES
from sepo.recipe.given import stage_of
from sepo.recipe.ignored_keys import WITHOUT_EFFECT
from sepo.recipe.keys import SEPO_KEYS
from sepo.recipe.model_specs import ModelSpec
from sepo.recipe.reference import PrecomputedReference
from sepo.recipe.resolve import REFUSED, resolve
from sepo.recipe.settings import TokenRewardSource
from sepo.recipe.stage_names import STAGES, check_stage

HOST_KEYS = ("stage", "pref_loss", "pref_beta", "pref_ftx", "ref_model", "learning_rate", "dataset", "do_train",
             "dpo_label_smoothing", "streaming", "model_name_or_path", "template", "simpo_gamma", "ref_model_adapters",
             "ref_model_quantization_bit", "adapter_name_or_path", "quantization_bit", "optim",
             "galore_layerwise", "model_revision", "neat_packing", "train_on_prompt", "mask_history",
             "predict_with_generate", "label_smoothing_factor", "moe_aux_loss_coef", "use_dft_loss", "use_asft_loss",
             "use_eaft_loss", "use_hyper_parallel", *WITHOUT_EFFECT)  # fmt: skip
RECIPE = {"stage": "sepo", "model_name_or_path": "m", "oracle_model": "o", "oracle_base_model": "b"}


def resolved(**overrides):
    recipe = {name: value for name, value in {**RECIPE, **overrides}.items() if value is not None}
    return resolve(recipe, host_keys=HOST_KEYS)


def test_defaults_are_the_papers():
    host, settings = resolved()
    assert host == {"stage": "dpo", "pref_loss": "simpo", "model_name_or_path": "m"}
    assert dict(settings.method.hyperparameters) == {"gamma": 1.0, "chosen_ratio": 0.3, "rejected_ratio": 0.3}
    assert settings.method.scorer == "oracle"
    assert not settings.method.needs_reference


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"select_ratio": 0.5}, {"chosen_ratio": 0.5, "rejected_ratio": 0.5}),
        ({"chosen_select_ratio": 0.2}, {"chosen_ratio": 0.2, "rejected_ratio": 0.3}),
        ({"rejected_select_ratio": "0.4"}, {"chosen_ratio": 0.3, "rejected_ratio": 0.4}),
        ({"sepo_gamma": 2}, {"gamma": 2.0}),
        ({"select_ratio": 1}, {"chosen_ratio": 1.0, "rejected_ratio": 1.0}),
    ],
)
def test_values_reach_the_method(keys, expected):
    hyperparameters = resolved(**keys)[1].method.hyperparameters
    assert {name: hyperparameters[name] for name in expected} == expected


@pytest.mark.parametrize(("value", "weight"), [(None, 0.0), (0, 0.0), (0.001, 0.001), ("1e-3", 0.001)])
def test_the_weight_of_the_router_loss_is_a_term_of_the_run(value, weight):
    host, settings = resolved(moe_aux_loss_coef=value)
    assert settings.router_loss_weight == weight
    assert host.get("moe_aux_loss_coef") == value  # the host reads it as well
    assert settings.method == resolved()[1].method
    changed = {item.name: item.value for item in settings.overview.changed}
    assert changed == ({"moe_aux_loss_coef": weight} if weight else {})


def test_one_adapter_over_one_set_of_weights():
    _, settings = resolved(oracle_model=None, oracle_model_adapters="sft, dpo", oracle_base_model_adapters="sft")
    assert settings.oracle.oracle.adapters == ("sft", "dpo")
    assert settings.oracle.shared_adapters == ("sft",)
    assert settings.oracle.one_set_of_weights


@pytest.mark.parametrize(
    ("keys", "one_set"),
    [
        ({"oracle_model_adapters": "a"}, False),  # over oracle_model, which is not the base
        ({"oracle_model_adapters": "a", "oracle_base_model": None}, True),  # the base is oracle_model itself
        ({"oracle_model": None, "oracle_model_adapters": "a", "oracle_base_model_adapters": "b"}, True),
        ({"oracle_model": None, "oracle_model_adapters": "a,b"}, False),
        ({"oracle_model": None, "oracle_model_adapters": "s,a", "oracle_base_model_adapters": "s",
          "oracle_model_quantization_bit": 4}, False),  # nothing is merged into quantized weights
    ],
)  # fmt: skip
def test_when_one_set_of_weights_serves_both(keys, one_set):
    assert resolved(**keys)[1].oracle.one_set_of_weights is one_set


def test_leftover_keys_of_a_dpo_recipe_are_accepted_and_reported():
    host, settings = resolved(pref_loss="sigmoid", pref_beta=0.1, dpo_label_smoothing=0.1)
    assert "beta" not in settings.method.hyperparameters
    assert [note.split()[0] for note in settings.notes] == ["pref_beta", "dpo_label_smoothing"]
    assert "dpo_label_smoothing" not in host  # the host refuses it with `simpo`


def test_command_line_form():
    words = ["--stage", "sepo", "--do_train", "--oracle-model=o", "--oracle_base_model", "b", "--learning_rate",
             "-1e-5", "--pref_loss", "sigmoid", "--select_ratio", "0.5"]  # fmt: skip
    assert stage_of(words) == "sepo"
    host, settings = resolve(words, host_keys=HOST_KEYS)
    assert host == ["--do_train", "--learning_rate", "-1e-5", "--stage", "dpo", "--pref_loss", "simpo"]
    assert settings.method.hyperparameters["chosen_ratio"] == 0.5


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"selct_ratio": 0.3}, ["unknown key 'selct_ratio'", "Did you mean 'select_ratio'"]),
        ({"lerning_rate": 0.3}, ["unknown key", "Did you mean 'learning_rate'"]),
        ({"select_ratio": 0}, ["select_ratio is 0.0", "(0, 1]"]),
        ({"select_ratio": 1.2}, ["select_ratio is 1.2", "(0, 1]"]),
        ({"chosen_select_ratio": -0.1}, ["chosen_select_ratio is -0.1"]),
        ({"select_ratio": "third"}, ["select_ratio is 'third'", "a number"]),
        ({"select_ratio": True}, ["select_ratio is True", "a number"]),
        ({"select_ratio": 0.3, "chosen_select_ratio": 0.3}, ["select_ratio and chosen_select_ratio are both set"]),
        ({"sepo_gamma": 0}, ["gamma"]),
        ({"sepo_gamma": float("nan")}, ["gamma"]),
        ({"score_batch_tokens": 0}, ["score_batch_tokens is 0", "at least 1"]),
        ({"batch_tokens": 0}, ["batch_tokens is 0", "at least 1"]),
        ({"kept_activations_mb": -1}, ["kept_activations_mb is -1", "at least 0"]),
        ({"batch_tokens": 9, "optim": "lomo"}, ["batch_tokens is 9", "optim", "remove batch_tokens"]),
        ({"batch_tokens": 9, "galore_layerwise": True}, ["batch_tokens is 9", "galore_layerwise"]),
        ({"batch_tokens": 9, "optim": "galore_adamw_layerwise"}, ["batch_tokens is 9", "galore_adamw_layerwise"]),
        ({"head_chunk_tokens": 1.5}, ["head_chunk_tokens is 1.5", "a whole number"]),
        ({"oracle_model_quantization_bit": 3}, ["4 or 8"]),
        ({"oracle_model": None}, ["no oracle is named", "objective sepo with token_scorer: oracle", "_adapters"]),
        ({"objective": "tgdpo", "oracle_model": None}, ["no oracle is named, and objective tgdpo with token_scorer"]),
        ({"oracle_base_model": None}, ["oracle_base_model is missing"]),
        ({"oracle_model": None, "oracle_model_adapters": "a", "oracle_base_model": None}, ["oracle_base_model is"]),
        ({"oracle_model": "b"}, ["the same model ('b')"]),
        ({"pref_loss": "ipo"}, ["pref_loss is 'ipo'", "objective: ipo"]),
        ({"pref_loss": "kto_pair"}, ["pref_loss is 'kto_pair'", "stage: dpo"]),
        ({"ref_model": "r"}, ["ref_model is set", "without a reference model"]),
        ({"streaming": True}, ["streaming is set", "remove streaming"]),
        *(
            ({name: True}, [f"{name} is set", f"remove {name}"])
            for name in (
                "neat_packing",
                "train_on_prompt",
                "mask_history",
                "predict_with_generate",
                "use_dft_loss",
                "use_asft_loss",
                "use_eaft_loss",
                "use_hyper_parallel",
            )
        ),
        ({"moe_aux_loss_coef": -0.001}, ["moe_aux_loss_coef is -0.001", "a finite number of at least 0"]),
        ({"moe_aux_loss_coef": ".inf"}, ["moe_aux_loss_coef is '.inf'", "expected a number"]),
        ({"moe_aux_loss_coef": float("nan")}, ["moe_aux_loss_coef is nan", "a finite number of at least 0"]),
        ({"label_smoothing_factor": 0.1}, ["label_smoothing_factor is set", "set dpo_label_smoothing"]),
        ({"objective": "minor_dp"}, ["objective is 'minor_dp'", "Did you mean 'minor_dpo'"]),
        ({"objective": "tdpo3"}, ["objective is 'tdpo3'", "one of dpo, ", "Did you mean 'tdpo"]),
        (
            {"token_scorer": "oracel"},
            [
                "token_scorer is 'oracel'",
                "oracle, policy_ref, contrastive, confidence, probability, file, random, none",
            ],
        ),
        ({"select_unit": "word"}, ["select_unit is 'word'", "token, span, step"]),
        ({"select_scope": "batch"}, ["select_scope is 'batch'", "response, pair, dataset"]),
        ({"select_unit": "span", "select_span_tokens": 0}, ["select_span_tokens is 0", "at least 1"]),
        ({"select_unit": "span", "select_span_tokens": 1.5}, ["select_span_tokens is 1.5", "a whole number"]),
        ({"select_span_tokens": 4}, ["span_tokens", "unit is 'token'", "select_unit"]),
        ({"select_scope": "pair", "chosen_select_ratio": 0.2}, ["one budget for both", "0.2", "select_ratio"]),
        ({"select_rule": "quantile", "select_unit": "span"}, ["rule 'quantile'", "unit 'span'"]),
        ({"select_rule": "quantile", "select_scope": "pair"}, ["rule 'quantile'", "scope 'pair'"]),
        ({"select_rule": "quantile", "select_scope": "dataset"}, ["rule 'quantile'", "scope 'dataset'"]),
        (
            {"token_scorer": "policy_ref", "select_scope": "dataset"},
            ["scope 'dataset'", "'policy_ref'", "file, random", "response or pair"],
        ),
        ({"token_scorer": "confidence", "select_scope": "dataset"}, ["scope 'dataset'", "'confidence'"]),
        *(
            (
                {"objective": "simpo", "token_scorer": "none", **keys},
                [f"{next(iter(keys))} is set", "token_scorer is none"],
            )
            for keys in ({"select_unit": "span"}, {"select_scope": "pair"}, {"select_span_tokens": 3})
        ),
        *(
            ({"token_scorer": scorer}, ["oracle_model is set", f"token_scorer is {scorer}"])
            for scorer in ("random", "file", "confidence", "contrastive")
        ),
        ({"objective": "simpo", "token_scorer": "confidence", "ref_model": "r"}, ["ref_model is set", "simpo trains"]),
        ({"select_rule": "round"}, ["select_rule is 'round'", "floor, quantile"]),
        (
            {"objective": "simpo", "token_scorer": "none", "select_ratio": 0.3},
            ["select_ratio is set", "token_scorer is none"],
        ),
        ({"objective": "simpo", "token_scorer": "none"}, ["oracle_model is set", "no oracle is used"]),
        ({"dpop_lambda": 5}, ["dpop_lambda is set", "objective sepo has no such term"]),
        (
            {"objective": "tdpo1", "token_scorer": "oracle", "tdpo_alpha": 0.5},
            ["tdpo_alpha is set", "objective tdpo1 has no such term"],
        ),
        ({"objective": "tdpo2", "token_scorer": "oracle", "tdpo_alpha": -1}, ["alpha"]),
        (
            {"objective": "ipo", "token_scorer": "oracle", "ipo_average": "maybe"},
            ["ipo_average is 'maybe'", "true or false"],
        ),
        ({"objective": "simpo", "ref_model": "r"}, ["ref_model is set", "objective simpo trains without"]),
        ({"treg_weighting": "static"}, ["treg_weighting is set", "no token-reward regularizer is on", "treg_alpha"]),
        (
            {"token_scorer": "contrastive", "treg_weighting": "static"},
            ["treg_weighting is set", "no token-reward regularizer is on", "treg_alpha"],
        ),
        *(
            (
                {"token_scorer": scorer, "treg_alpha": 0.1, "treg_rewards": "oracle"},
                [f"treg_rewards: oracle and token_scorer: {scorer} would both write", "treg_rewards: prompts"],
            )
            for scorer in ("contrastive", "file", "random")
        ),
        ({"treg_rewards": "oracle"}, ["treg_rewards is set", "no token-reward regularizer is on"]),
        ({"treg_alpha": 0, "treg_eval_model": "e"}, ["treg_eval_model is set", "treg_alpha above 0"]),
        ({"treg_alpha": -0.1}, ["treg_alpha is -0.1", "at least 0"]),
        ({"treg_alpha": float("nan")}, ["treg_alpha is nan"]),
        ({"treg_alpha": "much"}, ["treg_alpha is 'much'", "a number"]),
        ({"treg_alpha": 0.1, "treg_weighting": "token"}, ["treg_weighting is 'token'", "sequence, static"]),
        ({"treg_alpha": 0.1, "treg_rewards": "judge"}, ["treg_rewards is 'judge'", "prompts, oracle"]),
        (
            {"treg_alpha": 0.1, "treg_rewards": "oracle", "treg_eval_model": "e"},
            ["treg_eval_model is set", "treg_rewards: oracle"],
        ),
        ({"stage": "treg"}, ["oracle_model is set", "no oracle is used", "treg_rewards: oracle"]),
        (
            {"stage": "treg", "treg_rewards": "oracle", "oracle_model": None, "oracle_base_model": None},
            ["no oracle is named, and treg_rewards: oracle needs one"],
        ),
        (
            {"objective": "simpo_reg", "ref_model": "r", "oracle_model": None, "oracle_base_model": None},
            ["ref_model is set", "treg_eval_model names"],
        ),
        ({"ref_precompute": True}, ["ref_precompute is set", "objective sepo trains without", "remove ref_precompute"]),
        ({"objective": "simpo", "ref_precompute": True}, ["ref_precompute is set, but objective simpo trains without"]),
        *(
            (
                {"objective": objective, "ref_precompute": True},
                ["ref_precompute is set", f"objective {objective} compares whole distributions", "remove ref_pre"],
            )
            for objective in ("tdpo1", "tdpo2")
        ),
        ({"objective": "dpo", "ref_precompute": 2}, ["ref_precompute is 2", "true or false"]),
    ],
)
def test_errors_give_what_was_found_and_what_to_do(keys, words):
    with pytest.raises(SepoError) as caught:
        resolved(**keys)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_unknown_stage():
    with pytest.raises(SepoError, match=r"unknown stage 'sepoo'\. Did you mean 'sepo'\?"):
        check_stage("sepoo")
    check_stage("sft")
    check_stage(None)


NO_ORACLE = {"oracle_model": None, "oracle_base_model": None}


def unselecting(objective):
    """Return a token scorer without an oracle: none, or random scores for weights that read scores."""
    return "random" if resolve_method(objective).weighs_by_scores else "none"


@pytest.mark.parametrize(
    ("keys", "objective", "scorer", "expected"),
    [
        ({"stage": "minor_dpo", **NO_ORACLE}, "minor_dpo", "none", {"beta": 0.1}),
        ({"stage": "minor_dpo", "pref_beta": 0.5, **NO_ORACLE}, "minor_dpo", "none", {"beta": 0.5}),
        ({"stage": "selective_dpo", **NO_ORACLE}, "selective_dpo", "policy_ref", {"beta": 0.01, "chosen_ratio": 0.4}),
        (
            {"stage": "selective_dpo", "select_rule": "quantile", **NO_ORACLE},
            "selective_dpo",
            "policy_ref",
            {"rule": "quantile"},
        ),
        (
            {"objective": "minor_dpo", "token_scorer": "oracle", "select_ratio": 0.5},
            "minor_dpo",
            "oracle",
            {"chosen_ratio": 0.5},
        ),
        (
            {"objective": "simpo", "simpo_gamma": 0.5, "pref_beta": 2.5, "token_scorer": "oracle"},
            "simpo",
            "oracle",
            {"gamma": 0.5, "beta": 2.5},
        ),
        (
            {"token_scorer": "random", "select_unit": "span", "select_span_tokens": "4", **NO_ORACLE},
            "sepo",
            "random",
            {"unit": "span", "span_tokens": 4},
        ),
        (
            {"stage": "minor_dpo", "token_scorer": "file", "select_scope": "dataset", **NO_ORACLE},
            "minor_dpo",
            "file",
            {"scope": "dataset"},
        ),
        (
            {"objective": "simpo", "token_scorer": "confidence", "select_unit": "step", **NO_ORACLE},
            "simpo",
            "confidence",
            {"unit": "step"},
        ),
        (
            {"stage": "minor_dpo", "objective": "dpop", "dpop_lambda": 5, **NO_ORACLE},
            "dpop",
            "none",
            {"dpop_lambda": 5.0},
        ),
        (
            {"stage": "minor_dpo", "objective": "tdpo2", "tdpo_alpha": "0.7", "pref_beta": 0.2, **NO_ORACLE},
            "tdpo2",
            "none",
            {"alpha": 0.7, "beta": 0.2},
        ),
        ({"stage": "selective_dpo", "objective": "wpo", **NO_ORACLE}, "wpo", "none", {"beta": 0.1}),
        (
            {"objective": "tdpo1", "token_scorer": "oracle", "select_ratio": 0.5},
            "tdpo1",
            "oracle",
            {"chosen_ratio": 0.5},
        ),
        (
            {"stage": "minor_dpo", "objective": "ipo", "ipo_average": "false", **NO_ORACLE},
            "ipo",
            "none",
            {"average": False},
        ),
        (
            {"stage": "minor_dpo", "objective": "rrhf", "rrhf_sft_weight": 0.5, **NO_ORACLE},
            "rrhf",
            "none",
            {"sft_weight": 0.5},
        ),
        (
            {"stage": "minor_dpo", "objective": "dpo", "dpo_label_smoothing": 0.2, **NO_ORACLE},
            "dpo",
            "none",
            {"label_smoothing": 0.2},
        ),
    ],
)
def test_stage_objective_and_scorer_compose(keys, objective, scorer, expected):
    host, settings = resolved(**keys)
    method = settings.method
    assert (method.name, method.scorer) == (objective, scorer)
    assert {name: method.hyperparameters[name] for name in expected} == expected
    assert host["pref_loss"] == ("sigmoid" if method.needs_reference else "simpo")
    assert (settings.oracle is not None) == (scorer == "oracle")


TREG = {"stage": "treg", **NO_ORACLE}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (TREG, ("dpo_reg", 0.25, "sequence")),
        ({**TREG, "treg_alpha": 0.5, "treg_weighting": "static"}, ("dpo_reg", 0.5, "static")),
        ({**TREG, "objective": "simpo_reg", "treg_alpha": "0.1"}, ("simpo_reg", 0.1, "sequence")),
        ({**TREG, "objective": "simpo"}, ("simpo", 0.25, "sequence")),  # the stage turns it on
        ({**TREG, "objective": "minor_dpo", "treg_alpha": 1}, ("minor_dpo", 1.0, "sequence")),
        ({"stage": "minor_dpo", "treg_alpha": 0.1, **NO_ORACLE}, ("minor_dpo", 0.1, "sequence")),
        ({"treg_alpha": 0.1, "treg_weighting": "static"}, ("sepo", 0.1, "static")),
        ({**TREG, "treg_alpha": 0}, ("dpo_reg", None, None)),
        ({**TREG, "objective": "simpo", "treg_alpha": 0}, ("simpo", None, None)),
    ],
)
def test_treg_alpha_decides_about_the_regularizer(keys, expected):
    _, settings = resolved(**keys)
    parts = [part for part in settings.method.regularizers if part.needs_token_rewards]
    found = (parts[0].alpha, parts[0].weighting) if parts else (None, None)
    assert (settings.method.name, *found) == expected
    assert (settings.token_rewards is None) == (not parts)
    assert len(parts) <= 1


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_treg_alpha_adds_the_regularizer_to_any_objective(objective):
    keys = {"stage": "minor_dpo", "objective": objective, "token_scorer": unselecting(objective), **NO_ORACLE}
    method = resolved(**keys, treg_alpha=0.4, treg_weighting="static")[1].method
    assert [part.alpha for part in method.regularizers if part.needs_token_rewards] == [0.4]


@pytest.mark.parametrize(
    ("keys", "spec", "key"),
    [
        ({}, ModelSpec("m"), "model_name_or_path"),
        (
            {"adapter_name_or_path": "a, b", "quantization_bit": 4},
            ModelSpec("m", ("a", "b"), 4),
            "model_name_or_path",
        ),
        (
            {"ref_model": "r", "ref_model_adapters": "s", "ref_model_quantization_bit": "8", "quantization_bit": 4},
            ModelSpec("r", ("s",), 8),
            "ref_model",
        ),
        ({"treg_eval_model": "e", "ref_model": "r", "quantization_bit": 4}, ModelSpec("e"), "treg_eval_model"),
        ({"treg_eval_model": "e", "objective": "simpo_reg"}, ModelSpec("e"), "treg_eval_model"),
    ],
)
def test_the_scoring_model_of_token_rewards(keys, spec, key):
    _, settings = resolved(**TREG, **keys)
    assert settings.token_rewards == TokenRewardSource("prompts", spec, key)
    assert settings.notes[-1].startswith(f"T-REG's token rewards come from contrastive prompts to {spec.model}")
    assert settings.as_dict()["token_rewards"]["model"]["model"] == spec.model


REFERENCES = [
    ({}, ModelSpec("m"), "model_name_or_path"),
    (
        {"adapter_name_or_path": ["a", "b"], "quantization_bit": "4"},
        ModelSpec("m", ("a", "b"), 4),
        "model_name_or_path",
    ),
    (
        {"ref_model": "r", "ref_model_adapters": "s", "ref_model_quantization_bit": 8, "quantization_bit": 4},
        ModelSpec("r", ("s",), 8),
        "ref_model",
    ),
]


@pytest.mark.parametrize(("keys", "spec", "key"), REFERENCES)
def test_the_model_of_precomputed_log_probabilities(keys, spec, key):
    host, settings = resolved(stage="selective_dpo", ref_precompute=True, **NO_ORACLE, **keys)
    assert settings.precomputed_reference == PrecomputedReference(spec, key)
    assert settings.notes[0] == (
        f"the reference is {','.join((spec.model, *spec.adapters))} ({key}); its log-probabilities are computed before "
        "training."
    )
    assert any("zero up to rounding" in note for note in settings.notes) == (key == "model_name_or_path")
    assert settings.as_dict()["ref_precompute"]["model"] == spec.model
    assert host["pref_loss"] == "simpo"  # the host then loads no reference
    assert "ref_precompute" not in host


@pytest.mark.parametrize("value", [False, "false", None])
def test_a_reference_runs_in_training_unless_it_is_precomputed(value):
    host, settings = resolved(stage="minor_dpo", ref_precompute=value, **NO_ORACLE)
    assert settings.precomputed_reference is None
    assert host["pref_loss"] == "sigmoid"
    assert settings.as_dict()["ref_precompute"] is None
    resolved(ref_precompute=value)  # accepted if there is no reference


@pytest.mark.parametrize(
    "objective",
    [name for name in OBJECTIVES if name not in ("tdpo1", "tdpo2") and resolve_method(name).needs_reference],
)
def test_every_other_objective_with_a_reference_takes_it_precomputed(objective):
    keys = {"stage": "minor_dpo", "objective": objective, "token_scorer": unselecting(objective), **NO_ORACLE}
    assert resolved(**keys, ref_precompute=True)[1].precomputed_reference is not None


@pytest.mark.parametrize("scorer", ["oracle", "none"])
def test_the_oracle_gives_token_rewards_if_treg_rewards_is_oracle(scorer):
    _, settings = resolved(stage="treg", treg_rewards="oracle", token_scorer=scorer)
    assert settings.token_rewards == TokenRewardSource("oracle")
    assert settings.oracle.oracle.model == "o"
    assert settings.method.scorer == scorer


def test_an_oracle_that_selects_does_not_give_token_rewards_by_default():
    _, settings = resolved(stage="treg", token_scorer="oracle")
    assert settings.token_rewards.origin == "prompts"
    assert settings.oracle is not None


def test_stage_treg_without_its_regularizer_has_a_note():
    assert "without T-REG's regularizer" in resolved(**TREG, treg_alpha=0)[1].notes[-1]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_is_reachable_from_every_stage(stage, objective):
    keys = {"stage": stage, "objective": objective, "token_scorer": unselecting(objective), **NO_ORACLE}
    assert resolved(**keys)[1].method.name == objective


def test_every_key_has_an_effect():
    """Every key must change something that the run reads; otherwise it would be an option without effect."""
    values = {
        "sepo_gamma": 2.0, "select_ratio": 0.5, "chosen_select_ratio": 0.5, "rejected_select_ratio": 0.5,
        "oracle_model": "x", "oracle_model_adapters": "x", "oracle_base_model": "x", "oracle_base_model_adapters": "x",
        "oracle_model_quantization_bit": 4, "token_scores_dir": "x", "score_batch_tokens": 7, "head_chunk_tokens": 7,
        "batch_tokens": 7, "kept_activations_mb": 7, "oracle_scores": "centered", "oracle_checkpoints": 2,
        "oracles": [{"oracle_model_adapters": "x"}],
        "credit_data": "fluent",
    }  # fmt: skip
    plain = resolved()[1]
    for name, value in values.items():
        assert resolved(**{name: value})[1] != plain, name
    others = {"objective": "simpo", "token_scorer": "policy_ref", "select_rule": "quantile"}
    for name, value in others.items():
        given = NO_ORACLE if name == "token_scorer" else {}
        assert resolved(**{name: value, "token_scorer": "oracle", **given, **{name: value}})[1].method != plain.method
    units = {"select_unit": "span", "select_scope": "pair"}
    for name, value in units.items():
        assert resolved(**{name: value})[1].method.selector != plain.method.selector, name
    spans = [resolved(select_unit="span", select_span_tokens=length)[1] for length in (3, 4)]
    assert spans[0].method.selector != spans[1].method.selector
    assert spans[1].as_dict()["select"]["unit"] == "span"
    for objective, name, value in (
        ("dpop", "dpop_lambda", 1),
        ("tdpo2", "tdpo_alpha", 1),
        ("rrhf", "rrhf_sft_weight", 3),
        ("ipo", "ipo_average", False),
    ):
        base = {"objective": objective, "token_scorer": "oracle"}
        assert resolved(**base, **{name: value})[1].method != resolved(**base)[1].method, name
        values[name] = value
    for weight, name, value in (
        ("position", "d2po_decay", 0.5),
        ("length", "ld_alpha", 0.25),
        ("reward", "tgdpo_alpha", 0.25),
        ("importance", "tis_clip", 1.0),
        ("importance", "tis_low", 0.5),
        ("importance", "tis_high", 2.0),
        ("transport", "otpo_reg", 0.1),
        ("transport", "otpo_reg_m", 1.0),
    ):
        base = {"objective": "minor_dpo", "token_scorer": "oracle", "token_weight": weight}
        host, settings = resolved(**base, **{name: value})
        assert settings.method != resolved(**base)[1].method, name
        assert name not in host
        values[name] = value
    del values["ld_alpha"]  # a key of the host
    assert resolved(token_weight="position")[1].method != plain.method
    assert resolved(select_count="shorter")[1].method != plain.method
    values |= {"token_weight": "position", "select_count": "shorter"}
    live = {"stage": "selective_dpo", **NO_ORACLE}
    assert resolved(**live, ref_precompute=True)[1] != resolved(**live)[1]
    values["ref_precompute"] = True
    treg = resolved(treg_alpha=0.25)[1]
    for name, value in (
        ("treg_alpha", 0.5),
        ("treg_weighting", "static"),
        ("treg_rewards", "oracle"),
        ("treg_eval_model", "e"),
    ):
        assert resolved(**{"treg_alpha": 0.25, name: value})[1] != treg, name
        values[name] = value
    named = {
        "oracle_base_checkpoints": {"oracle_checkpoints": 2},
        "oracle_model_revision": {"oracle_model": "x"},
        "oracle_model_adapters_revision": {"oracle_model_adapters": "x"},
        "oracle_base_model_revision": {"oracle_base_model": "x"},
        "oracle_base_model_adapters_revision": {"oracle_base_model_adapters": "x"},
        "treg_eval_model_revision": {"treg_alpha": 0.25, "treg_eval_model": "x"},
        "ref_model_revision": {"stage": "minor_dpo", **NO_ORACLE, "ref_model": "x"},
        "ref_model_adapters_revision": {"stage": "minor_dpo", **NO_ORACLE, "ref_model": "x", "ref_model_adapters": "y"},
    }
    for name, keys in named.items():
        value = True if name == "oracle_base_checkpoints" else "v2"
        assert resolved(**keys, **{name: value})[1] != resolved(**keys)[1], name
    assert {*values, *others, *units, *named, "select_span_tokens"} == set(SEPO_KEYS)


def test_a_revision_belongs_to_one_model():
    keys = {"oracle_model_adapters": "first,second", "oracle_base_model_adapters": "first"}
    oracle = resolved(**keys, model_revision="v2")[1].oracle
    assert {oracle.oracle.revision, *oracle.oracle.revisions_of_adapters, oracle.base.revision} == {None}
    oracle = resolved(**keys, oracle_model_adapters_revision="v1,main", oracle_base_model_adapters_revision="v1")[
        1
    ].oracle
    assert oracle.oracle.revisions_of_adapters == ("v1", None)
    assert oracle.base.revisions_of_adapters == ("v1",)
    over_base = resolved(oracle_model=None, oracle_base_model_revision="v2", oracle_model_adapters="a")[1].oracle
    assert over_base.oracle.revision == over_base.base.revision == "v2"
    assert over_base.one_set_of_weights
    other = resolved(oracle_model="b", oracle_base_model="b", oracle_base_model_revision="v2")[1].oracle
    assert not other.one_set_of_weights
    for keys, said in (
        (
            {"oracle_model_adapters_revision": "v1"},
            "set oracle_model_adapters, or remove",
        ),
        ({"oracle_model_adapters": "a,b,c", "oracle_model_adapters_revision": "v1,v2"}, "2 revisions for 3 adapters"),
        ({"ref_model_revision": "v1"}, "ref_model_revision is set, but ref_model is not"),
    ):
        with pytest.raises(SepoError, match=said):
            resolved(**keys)


def test_a_reference_has_the_revision_of_the_policy_as_in_the_host():
    keys = {"stage": "minor_dpo", "ref_precompute": True, "model_revision": "v2", **NO_ORACLE}
    assert resolved(**keys)[1].precomputed_reference.model.revision == "v2"
    given = {**keys, "ref_model": "r", "ref_model_adapters": "a,b"}
    assert resolved(**given)[1].precomputed_reference.model == ModelSpec("r", ("a", "b"), None, "v2", ("v2", "v2"))
    own = {**given, "ref_model_revision": "v1", "ref_model_adapters_revision": ["v3", "v4"]}
    host, settings = resolved(**own)
    assert settings.precomputed_reference.model == ModelSpec("r", ("a", "b"), None, "v1", ("v3", "v4"))
    assert not [name for name in host if name.startswith("ref_") and name.endswith("revision")]
    assert ModelSpec.from_dict(settings.precomputed_reference.model.as_dict()) == settings.precomputed_reference.model
    assert "revision" not in ModelSpec("r", ("a",), None, "main", ("main",)).as_dict()


def test_contrastive_rewards_select_without_a_regularizer():
    settings = resolved(token_scorer="contrastive", treg_eval_model="judge", **NO_ORACLE)[1]
    assert settings.oracle is None
    assert not settings.method.needs_token_rewards
    assert settings.token_rewards == TokenRewardSource("prompts", ModelSpec("judge"), "treg_eval_model")
    assert resolved(token_scorer="contrastive", **NO_ORACLE)[1].token_rewards.key == "model_name_or_path"


def test_a_leftover_key_that_changes_the_objectives_own_value_is_reported():
    changed = resolved(stage="selective_dpo", pref_beta=0.1, **NO_ORACLE)[1].overview.changed
    assert [(each.name, each.value, each.default) for each in changed] == [("beta", 0.1, 0.01)]
    assert resolved(stage="selective_dpo", pref_beta=0.01, **NO_ORACLE)[1].overview.changed == ()


@pytest.mark.parametrize("stage", ["dpo", "sft", None])
def test_sepo_keys_in_a_recipe_of_a_host_stage_are_refused(stage):
    from sepo.hosts.llamafactory.recipe import check_recipe

    recipe = {"stage": stage, "select_ratio": 0.3, "dataset": "d"}
    with pytest.raises(SepoError, match=f"select_ratio is set, but stage {stage or 'sft'} is LLaMA-Factory's.*sepo"):
        check_recipe({name: value for name, value in recipe.items() if value is not None})


def test_reference_adapters_alone_are_over_the_policys_model():
    """The host would ignore them silently."""
    keys = {"model_name_or_path": "m", "ref_model_adapters": "aligned", **NO_ORACLE}
    host, settings = resolved(stage="selective_dpo", **keys)
    assert (host["ref_model"], host["ref_model_adapters"]) == ("m", "aligned")
    assert settings.notes[-1] == "the reference is m with ref_model_adapters: aligned."
    quantized = resolved(stage="minor_dpo", **keys, quantization_bit=4)[0]
    assert quantized["ref_model_quantization_bit"] == 4
    assert "ref_model" not in resolved(stage="minor_dpo", **NO_ORACLE)[0]
    words = ["--stage", "minor_dpo", "--model_name_or_path", "m", "--ref_model_adapters", "aligned"]
    host_words = resolve(words, host_keys=HOST_KEYS)[0]
    assert host_words[host_words.index("--ref_model") + 1] == "m"
    stored = resolved(stage="minor_dpo", **keys, ref_precompute=True)[1].precomputed_reference
    assert stored == PrecomputedReference(ModelSpec("m", ("aligned",)), "ref_model")


def test_keys_without_effect_are_named_in_one_line_for_each_reason():
    _, settings = resolved(packing=True, ppo_target=3.0, kto_chosen_weight="2", do_predict="false", eval_num_beams=None)
    packing, others = settings.notes
    assert packing.startswith("packing is set, but has no effect in this stage: pairs are not packed")
    assert others.startswith("kto_chosen_weight and ppo_target are set, but have no effect in this stage")


@pytest.mark.parametrize("off", [False, "false", 0, 0.0, None])
def test_off_values_of_other_keys_are_fine(off):
    names = [name for name in HOST_KEYS if name in WITHOUT_EFFECT or name in REFUSED]
    assert len(names) > len(WITHOUT_EFFECT)
    assert resolve({**RECIPE, **dict.fromkeys(names, off)}, host_keys=HOST_KEYS)[1].notes == ()


def test_the_hosts_keys_without_effect_are_keys_of_the_host():
    from sepo.hosts.llamafactory.recipe import host_keys

    assert {*WITHOUT_EFFECT, *REFUSED} <= set(host_keys())


def test_null_keys_of_sepo_are_absent_in_a_stage_of_the_host():
    from sepo.hosts.llamafactory.recipe import check_recipe

    recipe = {"stage": "dpo", "model_name_or_path": "m", "cache_dir": None}
    assert check_recipe({**recipe, "select_ratio": None, "oracle_model": None}) == (recipe, None)
    with pytest.raises(SepoError, match="batch_tokens is set, but stage dpo is LLaMA-Factory's"):
        check_recipe({**recipe, "select_ratio": None, "batch_tokens": 4096})


@pytest.mark.parametrize("objective", [{"dpo": 0.8, "orpo": "0.2"}, "dpo: 0.8, orpo: 0.2", "{dpo: 0.8,orpo: .2}"])
def test_a_sum_of_objectives(objective):
    host, settings = resolved(stage="minor_dpo", objective=objective, pref_beta=0.3, **NO_ORACLE)
    method = resolve_method({"dpo": 0.8, "orpo": 0.2}, beta=0.3)
    assert settings.method == replace(method, settings=settings.method.settings)
    assert settings.as_dict()["factors"] == {"dpo": 0.8, "orpo": 0.2}
    assert settings.as_dict()["objective"] == "dpo+orpo"
    assert settings.as_dict()["hyperparameters"]["orpo.beta"] == 0.3
    assert "objective" not in host
    assert "dpo.beta   0.3, default 0.1  (pref_beta)" in settings.first_screen
    assert "objective     0.8 dpo + 0.2 orpo  (objective)" in settings.first_screen
    words = ["--stage", "minor_dpo", "--objective", "dpo: 0.8, orpo: 0.2", "--pref_beta", "0.3"]
    assert resolve(words, host_keys=HOST_KEYS)[1].method == settings.method


def test_keys_of_a_sum_reach_the_objectives_that_have_them():
    objective = {"sepo": 1.0, "simpo": 0.5, "dpo_reg": 0.25}
    settings = resolved(objective=objective, sepo_gamma=2.0, simpo_gamma=0.5, treg_alpha=0.5, select_ratio=0.2)[1]
    values = settings.method.hyperparameters
    assert values["sepo.gamma"] == 2.0
    assert values["simpo.gamma"] == 0.5
    assert values["dpo_reg.alpha"] == 0.5
    assert values["chosen_ratio"] == 0.2
    assert settings.method.selector.chosen_ratio == settings.method.added[1][1].selector.chosen_ratio == 0.2
    keys = {"stage": "minor_dpo", "objective": {"d2po": 1.0, "ipo": 1.0}, "token_weight": "position", **NO_ORACLE}
    settings = resolved(**keys, d2po_decay=0.5)[1]
    assert settings.method.token_weight == resolve_method("d2po", decay=0.5).token_weight
    assert "decay  0.5, default 0.98  (d2po_decay)" in settings.first_screen
    assert resolved(**{**keys, "stage": "treg", "objective": {"dpo_reg": 1.0, "sft": 0.5}, "token_weight": None})


@pytest.mark.parametrize("objective", [{"dpo": 1.0, "sft": 0.5}, {"dpo": 1.0, "orpo": 0.5}])
def test_a_sum_in_stage_treg_has_the_regularizer_only_by_an_objective_with_one(objective):
    settings = resolved(stage="treg", objective=objective, **NO_ORACLE)[1]
    assert not settings.method.needs_token_rewards
    assert "treg_alpha is 0: the objective is trained without T-REG's regularizer." in settings.notes


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"objective": {"dpo": "much"}}, "the factor of dpo in objective is 'much', expected a number"),
        ({"objective": ["dpo", "orpo"]}, "expected the name of an objective, or a sum such as"),
        ({"objective": {"dpo": 0.5, "orppo": 0.5}}, "objective is 'orppo', expected one of .*Did you mean 'orpo'"),
        ({"objective": {"dpo": 0.5, "orpo": 0.5}, "tdpo_alpha": 1.0}, "objective dpo.orpo has no such term"),
        ({"objective": {"dpo": 0.5, "d2po": 0.5}}, "set token_weight for all of them"),
        ({"objective": "dpo", "ld_alpha": 0.5}, "belongs to token_weight length, and token_weight is none"),
        ({"objective": "d2po", "tis_clip": 0.5}, "belongs to token_weight importance, and token_weight is position"),
        (
            {"objective": "ld_dpo", "ld_alpha": 1.5},
            r"^ld_alpha is 1.5, expected a number in .0, 1.; the default is 0.5",
        ),
        (
            {"objective": "minor_dpo", "token_weight": "position", "d2po_decay": 2},
            "^d2po_decay is 2.0, expected a number in .0, 1.; the default is 0.98",
        ),
        ({"objective": "confpo", "pref_beta": -1}, "^pref_beta is -1.0, expected a number .*; the default is 1.5"),
        ({"objective": "confpo", "select_ratio": 0.3}, "but rule mean sets the number of selected tokens"),
        ({"objective": "simpo", "token_scorer": "random", "token_weight": "reward"}, "weights that can be negative"),
    ],
)
def test_errors_of_sums_and_weights(keys, message):
    with pytest.raises(SepoError, match=message):
        resolved(stage="minor_dpo", **NO_ORACLE, **keys)
