"""Our keys: what is accepted, what is refused, and that each refusal says what to do."""

import pytest

from sepo.errors import SepoError
from sepo.hosts.llamafactory.arguments import OBJECTIVES, STAGES, check_stage, resolve, stage_of
from sepo.hosts.llamafactory.keys import OUR_KEYS

HOST_KEYS = ("stage", "pref_loss", "pref_beta", "pref_ftx", "ref_model", "learning_rate", "dataset", "do_train",
             "dpo_label_smoothing", "streaming", "model_name_or_path", "template", "simpo_gamma")  # fmt: skip
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


def test_one_adapter_over_one_set_of_weights():
    _, settings = resolved(oracle_model=None, oracle_model_adapters="sft, dpo", oracle_base_model_adapters="sft")
    assert settings.oracle.oracle.adapters == ("sft", "dpo")
    assert settings.oracle.shared_adapters == ("sft",)
    assert settings.oracle.one_set_of_weights


@pytest.mark.parametrize(
    ("keys", "one_set"),
    [
        ({"oracle_model_adapters": "a"}, False),  # over oracle_model, another model than the base
        ({"oracle_model_adapters": "a", "oracle_base_model": None}, True),  # the base is oracle_model itself
        ({"oracle_model": None, "oracle_model_adapters": "a", "oracle_base_model_adapters": "b"}, True),
        ({"oracle_model": None, "oracle_model_adapters": "a,b"}, False),
        ({"oracle_model": None, "oracle_model_adapters": "s,a", "oracle_base_model_adapters": "s",
          "oracle_model_quantization_bit": 4}, False),  # nothing is merged into quantized weights
    ],
)  # fmt: skip
def test_when_one_set_of_weights_serves_both(keys, one_set):
    assert resolved(**keys)[1].oracle.one_set_of_weights is one_set


def test_leftovers_of_a_dpo_recipe_are_accepted_and_said():
    host, settings = resolved(pref_loss="sigmoid", pref_beta=0.1, dpo_label_smoothing=0.1)
    assert "beta" not in settings.method.hyperparameters
    assert [note.split()[0] for note in settings.notes] == ["pref_beta", "dpo_label_smoothing"]
    assert "dpo_label_smoothing" not in host  # the host refuses it beside `simpo`


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
        ({"head_chunk_tokens": 1.5}, ["head_chunk_tokens is 1.5", "a whole number"]),
        ({"oracle_model_quantization_bit": 3}, ["4 or 8"]),
        ({"oracle_model": None}, ["needs an oracle", "oracle_model_adapters"]),
        ({"oracle_base_model": None}, ["oracle_base_model is missing"]),
        ({"oracle_model": None, "oracle_model_adapters": "a", "oracle_base_model": None}, ["oracle_base_model is"]),
        ({"oracle_model": "b"}, ["the same model ('b')"]),
        ({"pref_loss": "ipo"}, ["pref_loss is 'ipo'", "objective: ipo"]),
        ({"pref_loss": "kto_pair"}, ["pref_loss is 'kto_pair'", "stage: dpo"]),
        ({"ref_model": "r"}, ["ref_model is set", "without a reference model"]),
        ({"streaming": True}, ["streaming is set", "remove streaming"]),
        ({"objective": "minor_dp"}, ["objective is 'minor_dp'", "Did you mean 'minor_dpo'"]),
        ({"objective": "tdpo3"}, ["objective is 'tdpo3'", "one of dpo, ", "Did you mean 'tdpo"]),
        ({"token_scorer": "oracel"}, ["token_scorer is 'oracel'", "oracle, policy_ref, none"]),
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
    ],
)
def test_refusals_say_what_was_found_and_what_to_do(keys, words):
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


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_is_reachable_from_every_stage(stage, objective):
    keys = {"stage": stage, "objective": objective, "token_scorer": "none", **NO_ORACLE}
    assert resolved(**keys)[1].method.name == objective


def test_every_key_does_something():
    """A key that changes nothing that the run reads would be an option that does nothing."""
    values = {
        "sepo_gamma": 2.0, "select_ratio": 0.5, "chosen_select_ratio": 0.5, "rejected_select_ratio": 0.5,
        "oracle_model": "x", "oracle_model_adapters": "x", "oracle_base_model": "x", "oracle_base_model_adapters": "x",
        "oracle_model_quantization_bit": 4, "token_scores_dir": "x", "score_batch_tokens": 7, "head_chunk_tokens": 7,
    }  # fmt: skip
    plain = resolved()[1]
    for name, value in values.items():
        assert resolved(**{name: value})[1] != plain, name
    others = {"objective": "simpo", "token_scorer": "policy_ref", "select_rule": "quantile"}
    for name, value in others.items():
        given = NO_ORACLE if name == "token_scorer" else {}
        assert resolved(**{name: value, "token_scorer": "oracle", **given, **{name: value}})[1].method != plain.method
    for objective, name, value in (
        ("dpop", "dpop_lambda", 1),
        ("tdpo2", "tdpo_alpha", 1),
        ("rrhf", "rrhf_sft_weight", 3),
        ("ipo", "ipo_average", False),
    ):
        base = {"objective": objective, "token_scorer": "oracle"}
        assert resolved(**base, **{name: value})[1].method != resolved(**base)[1].method, name
        values[name] = value
    assert {*values, *others} == set(OUR_KEYS)
