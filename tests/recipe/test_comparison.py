"""The file of `sepo compare`: its variants and runs, and what is refused."""

import pytest

from sepo.errors import SepoError
from sepo.recipe.comparison import read_comparison, uses_oracle
from sepo.recipe.resolve import resolve

FILE = {
    "model_name_or_path": "m",
    "template": "t",
    "dataset": "d",
    "eval_dataset": "held",
    "output_dir": "out",
    "stage": "sepo",
    "cutoff_len": 512,
    "variants": {"dpo": {"objective": "dpo"}, "sepo": {"select_ratio": 0.3}},
}


def read(**keys):
    return read_comparison({name: value for name, value in {**FILE, **keys}.items() if value != "absent"})


def names(comparison):
    return [variant.name for variant in comparison.variants]


def test_variants_and_seeds_are_runs_with_their_own_directories():
    found = read(seeds=[1, 2])
    assert [run.name for run in found.runs()] == ["dpo-1", "dpo-2", "sepo-1", "sepo-2"]
    recipe = found.runs()[3].recipe
    assert (recipe["seed"], recipe["output_dir"], recipe["select_ratio"]) == (2, "out/runs/sepo-2", 0.3)
    assert recipe["do_train"] is True
    assert not {"eval_dataset", "variants", "seeds"} & set(recipe)
    assert found.baseline == "dpo"
    assert read(seed=7, seeds=None).seeds == (7,)
    assert read().seeds == (42,)


def test_a_grid_is_a_product_alone_for_all_variants_or_for_one():
    ratios = {"chosen_select_ratio": [0.1, 0.3, 0.5, 0.7, 0.9], "rejected_select_ratio": [0.1, 0.3, 0.5, 0.7, 0.9]}
    alone = read(variants=None, grid=ratios)
    assert len(alone.variants) == 25
    assert names(alone)[1] == "grid-chosen_select_ratio=0.1-rejected_select_ratio=0.3"
    assert alone.variants[1].keys == {"chosen_select_ratio": 0.1, "rejected_select_ratio": 0.3}
    both = read(grid={"learning_rate": [1e-6, 5e-6]}, variants={"dpo": {"learning_rate": 1e-5}, "sepo": None})
    assert names(both) == ["dpo", "sepo-learning_rate=1e-06", "sepo-learning_rate=5e-06"]  # a variant's own value wins
    own = read(variants={"dpo": {"objective": "dpo"}, "sepo": {"grid": {"select_ratio": [0.2, 0.4]}}})
    assert names(own) == ["dpo", "sepo-select_ratio=0.2", "sepo-select_ratio=0.4"]
    assert "grid" not in own.variants[1].keys


def test_what_is_chosen_is_one_result_for_each_variant():
    found = read(
        grid={"learning_rate": [1e-6, 5e-6], "pref_beta": [0.1, 0.2]}, choose="learning_rate", val_size=0.1,
        baseline="sepo-pref_beta=0.2",
    )  # fmt: skip
    assert list(found.groups) == ["dpo-pref_beta=0.1", "dpo-pref_beta=0.2", "sepo-pref_beta=0.1", "sepo-pref_beta=0.2"]
    assert all(len(variants) == 2 for variants in found.groups.values())
    assert (found.choose_by, found.baseline) == ("accuracy", "sepo-pref_beta=0.2")
    judged = read(choose="learning_rate", grid={"learning_rate": [1e-6]}, val_size=0.1, judge="math", generate=4,
                  expected_column="answer")  # fmt: skip
    assert judged.choose_by == "right"


def test_runs_never_read_held_out_rows_and_validation_rows_only_to_evaluate():
    chosen = {"choose": "learning_rate", "grid": {"learning_rate": [1e-6]}}
    split = read(**chosen, val_size=0.1).runs()[0].recipe
    assert split["val_size"] == 0.1  # these rows are not trained on
    assert "eval_dataset" not in split
    named = read(**chosen, validation_dataset="val").runs()[0].recipe
    assert not {"eval_dataset", "val_size"} & set(named)
    while_training = read(**chosen, validation_dataset="val", eval_strategy="steps").runs()[0].recipe
    assert while_training["eval_dataset"] == "val"


def test_all_variants_are_evaluated_on_the_same_rows_with_the_same_reference():
    found = read(variants={"a": {"cutoff_len": 64, "ref_model": "strong", "max_samples": 10}}, max_samples=500)
    (run,) = found.runs()
    assert (run.recipe["cutoff_len"], run.recipe["ref_model"], run.recipe["max_samples"]) == (64, "strong", 10)
    evaluated = found.evaluated_recipe(run)
    assert (evaluated["eval_dataset"], evaluated["cutoff_len"], evaluated["max_samples"]) == ("held", 512, 500)
    assert "ref_model" not in evaluated
    split = read(variants={"a": {"max_samples": 10}}, val_size=0.2)
    evaluated = split.evaluated_recipe(split.runs()[0], validation=True)
    # The split of the rows that the run has read: with more rows, it would contain some that were trained on.
    assert (evaluated["val_size"], evaluated["max_samples"], "eval_dataset" in evaluated) == (0.2, 10, False)


def test_shared_keys_of_sepo_are_absent_in_stages_of_the_host():
    dpo, own = read(select_ratio=0.5, variants={"dpo": {"stage": "dpo"}, "sepo": {}}).runs()
    assert "select_ratio" not in dpo.recipe
    assert own.recipe["select_ratio"] == 0.5
    kept = read(variants={"dpo": {"stage": "dpo", "select_ratio": 0.5}}).runs()[0]
    assert kept.recipe["select_ratio"] == 0.5  # refused as in sepo train


def test_shared_keys_of_a_part_that_a_variant_has_not_are_absent_in_it():
    shared = {"oracle_model": "o", "oracle_base_model": "b", "ref_model": "r", "ref_precompute": True, "stage": "sepo",
              "select_ratio": 0.5}  # fmt: skip
    found = read(**shared, variants={"sepo": {}, "dpo": {"objective": "dpo"}, "sel": {"stage": "selective_dpo"},
                                     "treg": {"stage": "treg", "treg_rewards": "oracle"}})  # fmt: skip
    parts = {run.variant.name: {name for name in shared if name in run.recipe} - {"stage"} for run in found.runs()}
    oracle, reference = {"oracle_model", "oracle_base_model"}, {"ref_model", "ref_precompute"}
    assert parts == {
        "sepo": {*oracle, "select_ratio"},
        "dpo": reference,
        "sel": {*reference, "select_ratio"},
        "treg": {*oracle, *reference},
    }
    for run in found.runs():
        resolve(run.recipe, host_keys=run.recipe)
    own = read(variants={"dpo": {"objective": "dpo", "oracle_model": "o"}}).runs()[0]
    assert own.recipe["oracle_model"] == "o"  # refused as in sepo train
    with pytest.raises(SepoError, match="variant 'a': objective is 'dpp', expected one of"):
        read(variants={"a": {"objective": "dpp"}}).runs()


def test_the_oracle_is_trained_with_shared_keys_and_the_first_seed():
    found = read(
        seeds=[3, 4], oracle={"learning_rate": 1e-5}, base=None, oracle_sample_ratio=0.5, base_dataset=None,
        val_size=0.1, ref_model="strong", ref_precompute=True,
    )  # fmt: skip
    recipe = found.oracle_recipe()
    assert (recipe["seed"], recipe["val_size"], recipe["output_dir"]) == (3, 0.1, "out")
    assert (recipe["oracle"], recipe["base"], recipe["oracle_sample_ratio"]) == ({"learning_rate": 1e-5}, None, 0.5)
    # The rows and the reference of the variants are not those of the oracle.
    assert not {"eval_dataset", "ref_model", "variants", "seeds", "base_dataset"} & set(recipe)
    assert "eval_dataset" not in read(oracle={}, validation_dataset="v").oracle_recipe()
    assert not {"oracle", "base", "oracle_sample_ratio"} & set(found.shared)
    assert read().oracle_recipe() is None
    assert read(oracle={}, oracle_model_quantization_bit=4).shared["oracle_model_quantization_bit"] == 4


def test_the_keys_of_the_oracle_reach_the_variants_that_use_it():
    made = {"oracle_base_model": "m", "oracle_model_adapters": "out/base,out/oracle"}
    variants = {"host": {"stage": "dpo"}, "dpo": {"objective": "dpo"}, "sepo": {},
                "treg": {"stage": "treg", "treg_rewards": "oracle"}}  # fmt: skip
    found = read(oracle={}, variants=variants).with_oracle(made)
    assert {run.variant.name: made.items() <= run.recipe.items() for run in found.runs()} == {
        "host": False, "dpo": False, "sepo": True, "treg": True,
    }  # fmt: skip
    assert [uses_oracle(run.recipe) for run in found.runs()] == [False, False, True, True]
    with pytest.raises(SepoError, match="section 'base' trains an oracle, but no variant uses one; remove the section"):
        read(base={}, variants={"dpo": {"objective": "dpo"}, "host": {"stage": "dpo"}}).with_oracle(made)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"variants": None}, "there are no variants; add the section variants"),
        ({"variants": ["dpo"]}, "section 'variants' is no mapping"),
        ({"variants": {"a/b": {}}}, "variant 'a/b': its name is part of file names"),
        ({"variants": {"a": 3}}, "variant 'a' is 3; keys and values are expected"),
        ({"variants": {"a": {"seed": 3}}}, "variant 'a' sets seed, which is the same for all variants"),
        ({"variants": {"a": {"eval_dataset": "x"}}}, "variant 'a' sets eval_dataset"),
        ({"variants": {"a": {"judge": "math"}}}, "variant 'a' sets judge"),
        ({"grid": {"seed": [1, 2]}}, "variant 'dpo' sets seed"),
        ({"grid": {"learning_rate": 1e-6}}, "grid: learning_rate is 1e-06, expected a list of values"),
        ({"grid": {"learning_rate": [1e-6, 1e-6]}}, "learning_rate has 1e-06 twice"),
        ({"grid": {"model_name_or_path": ["a/b"]}}, "has the value 'a/b', expected numbers and words"),
        (
            {"variants": {"a-pref_beta=1": {}, "a": {"grid": {"pref_beta": [1]}}}},
            "two variants are named a-pref",
        ),
        ({"output_dir": None}, "output_dir is missing"),
        ({"eval_dataset": None}, "eval_dataset is missing; set it to held-out pairs"),
        ({"overwrite_output_dir": True}, "overwrite_output_dir is set"),
        ({"policy": {}}, "section 'policy' is one of sepo pipeline; set its keys on top, or in a variant"),
        ({"oracle": {}, "oracle_model": "o"}, "the file sets oracle_model, and section 'oracle' trains an oracle"),
        (
            {"base": False, "variants": {"a": {"oracle_model_adapters": "o"}}},
            "variant 'a' sets oracle_model_adapters, and section 'base' trains an oracle; remove one",
        ),
        ({"oracle_sample_ratio": 0.5}, "oracle_sample_ratio is set, but no oracle is trained; add the section oracle"),
        ({"variants": {"a": {"oracle": {}}}}, "variant 'a' sets oracle, which is the same for all variants"),
        ({"variants": {"a": {"base_dataset": "x"}}}, "variant 'a' sets base_dataset, which is the same for all"),
        ({"seeds": [1, 1]}, "seeds is \\[1, 1\\], expected a list of different whole numbers"),
        ({"seeds": [1], "seed": 2}, "seed and seeds are both set"),
        ({"seeds": ["x"]}, "seeds is 'x', expected a whole number"),
        ({"baseline": "dppo"}, "baseline is dppo, expected a variant: dpo, sepo. Did you mean 'dpo'"),
        ({"dataset": "d,held"}, "eval_dataset and dataset both name held"),
        ({"variants": {"a": {"dataset": "held"}}}, "variant 'a': eval_dataset and dataset both name held"),
        ({"validation_dataset": "held"}, "eval_dataset and validation_dataset both name held"),
        ({"validation_dataset": "d"}, "dataset and validation_dataset both name d"),
        ({"validation_dataset": "v", "val_size": 0.1}, "validation_dataset and val_size are both set"),
        ({"eval_strategy": "steps"}, "eval_strategy is steps, but there are no validation rows"),
        ({"choose": "learning_rate"}, "choose names learning_rate, which is in no grid"),
        ({"choose": "pref_beta", "grid": {"pref_beta": [1, 2]}}, "choose names pref_beta, but there are no validation"),
        (
            {
                "choose": "learning_rate",
                "grid": {"learning_rate": [1e-6]},
                "val_size": 0.1,
                "reference_measures": False,
            },
            "choose_by is accuracy, that of the log-ratio to the reference, but reference_measures is false",
        ),
        ({"choose_by": "loss"}, "choose_by is 'loss', expected one of accuracy, right"),
        ({"choose_by": "right"}, "choose_by is right, but there is no judge"),
        ({"judge": "math", "expected_column": "a"}, "judge is math, but generate is 0"),
        ({"expected_column": "a"}, "expected_column is set without judge"),
        ({"judge_options": {"a": 1}}, "judge_options is set without judge"),
        ({"generate": -1}, "generate is -1, expected a whole number of at least 0"),
    ],
)
def test_wrong_files_are_refused(keys, message):
    with pytest.raises(SepoError, match=message):
        read(**keys)
