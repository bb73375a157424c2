"""Keys of several oracles and of what is made of their scores: resolved, recorded, refused."""

import doctest

import pytest

import sepo.recipe.oracle_lists
from sepo.errors import SepoError
from sepo.recipe.keys import ORACLE_KEYS, seeds_of
from sepo.recipe.model_specs import ModelSpec, OracleSet, OracleSpec
from sepo.recipe.resolve import resolve

RECIPE = {"stage": "sepo", "model_name_or_path": "m", "oracle_base_model": "b"}
TWO = [{"oracle_model_adapters": "a"}, {"oracle_model_adapters": ["sft", "c"], "oracle_base_model_adapters": "sft"}]


def resolved(**keys):
    recipe = {name: value for name, value in {**RECIPE, **keys}.items() if value is not None}
    return resolve(recipe, host_keys=("stage", "model_name_or_path"))


def test_the_examples_of_the_docstrings():
    assert doctest.testmod(sepo.recipe.oracle_lists).failed == 0


def test_a_list_of_oracles_shares_the_keys_beside_it():
    host, settings = resolved(oracles=TWO, oracle_model_quantization_bit=4)
    assert host == {"model_name_or_path": "m", "stage": "dpo", "pref_loss": "simpo"}
    first, second = settings.oracles.members
    assert first == settings.oracle == OracleSpec(ModelSpec("b", ("a",), 4), ModelSpec("b", (), 4))
    assert second == OracleSpec(ModelSpec("b", ("sft", "c"), 4), ModelSpec("b", ("sft",), 4))
    assert "oracle        the mean of 2: b with a over b; b with sft,c over b with sft" in settings.first_screen


def test_a_list_of_one_is_that_oracle():
    assert resolved(oracles=TWO[:1])[1] == resolved(oracle_model_adapters="a")[1]


def test_a_command_line_has_the_list_as_json():
    words = [
        "--stage",
        "sepo",
        "--oracle_base_model",
        "b",
        "--oracles",
        '[{"oracle_model": "o"}, {"oracle_model": "p"}]',
    ]
    _, settings = resolve(words, host_keys=("stage",))
    assert [member.oracle.model for member in settings.oracles.members] == ["o", "p"]


def test_only_what_is_not_plain_is_recorded():
    assert "oracles" not in resolved(oracle_model="o")[1].as_dict()
    for keys in ({"oracles": TWO}, {"oracle_model": "o", "oracle_scores": "centered"},
                 {"oracle_model": "o", "oracle_checkpoints": 2, "oracle_base_checkpoints": True}):  # fmt: skip
        settings = resolved(**keys)[1]
        assert OracleSet.from_dict(settings.as_dict()["oracles"]) == settings.oracles


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"oracles": "a,b"}, r"oracles is 'a,b', expected a list such as \[\{oracle_model_adapters: a\}"),
        ({"oracles": []}, r"oracles is \[\], expected a list"),
        ({"oracles": [{}]}, "expected a list"),
        ({"oracles": [{"oracle_model_adaptors": "a"}]}, "oracle 1: unknown key 'oracle_model_adaptors'.*Did you mean"),
        ({"oracles": [{"oracle_scores": "ratio"}]}, "oracle 1: unknown key 'oracle_scores'"),
        ({"oracles": [{"oracle_model": ""}]}, "oracle 1: oracle_model is '', expected a name"),
        ({"oracles": [{"oracle_model": {"a": 1}}]}, "oracle 1: oracle_model is .*, expected a name"),
        ({"oracles": [*TWO, TWO[0]]}, "oracle 3: b with a over b is in the list twice; remove one of them"),
        ({"oracles": [{"oracle_model": "b"}]}, "oracle 1: the oracle and its base are the same model"),
        ({"oracles": TWO, "oracle_base_model": None}, "oracle 1: oracle_base_model is missing"),
        ({"oracles": TWO, "oracle_model_adapters": "d"}, "oracle_model_adapters is set, but every oracle in oracles"),
        ({"oracles": [{"oracle_model": "o", "oracle_model_adapters_revision": "v"}]},
         "oracle 1: oracle_model_adapters_revision is set, but oracle_model_adapters is not"),
        ({"oracle_model": "o", "oracle_base_checkpoints": True}, "oracle_base_checkpoints is set, but oracle_check"),
        ({"oracle_model": "o", "oracle_checkpoints": 0}, "oracle_checkpoints is 0, expected a whole number"),
        ({"oracle_model": "o", "oracle_scores": "mean"}, "oracle_scores is 'mean', expected one of ratio, centered"),
        ({"token_scorer": "random", "oracle_base_model": None, "oracles": TWO}, "oracles is set, but no oracle"),
        ({"stage": "rto", "judge": "exact", "oracle_model": "o", "oracle_scores": "centered"},
         "oracle_scores is set, but it belongs to the stages that train on pairs"),
    ],
)  # fmt: skip
def test_wrong_keys_are_refused_in_one_line(keys, words):
    from sepo.recipe.rto import resolve_rto

    resolver = resolve_rto if keys.get("stage") == "rto" else resolve
    recipe = {name: value for name, value in {**RECIPE, **keys}.items() if value is not None}
    with pytest.raises(SepoError, match=words) as caught:
        resolver(recipe, host_keys=("stage", "model_name_or_path"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [[], [1, 1], ["one"], "1,1", [1.5], [True]])
def test_seeds_are_different_whole_numbers(value):
    with pytest.raises(SepoError, match=r"oracle\.seeds is .*, expected a (list of different )?whole number"):
        ORACLE_KEYS["oracle.seeds"].read(value)
    assert seeds_of("seeds", [3, "4"]) == seeds_of("seeds", "3,4") == (3, 4)
