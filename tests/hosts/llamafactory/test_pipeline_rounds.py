"""The steps of `sepo pipeline` with sampled pairs and several rounds: their recipes."""

import json
import os

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sepo.errors import SepoError
from sepo.hosts.llamafactory import child_runs, pipeline, reading
from sepo.hosts.llamafactory.chain_checks import check_steps
from sepo.hosts.llamafactory.chain_pairs import evaluation_entries
from sepo.hosts.llamafactory.chain_steps import last_model, plan_steps
from sepo.hosts.llamafactory.hub import policy_in
from sepo.hosts.llamafactory.recipe import host_keys
from sepo.recipe.reference import reference_spec
from sepo.recipe.resolve import resolve

SHARED = {"model_name_or_path": "m", "template": "t", "dataset": "d", "dataset_dir": "data", "output_dir": "out"}
MATH = {"judge": "math", "expected_column": "answer"}


def by_round(**overrides):
    """Return the recipes of the steps by round and name."""
    found = {}
    for step in plan_steps({**SHARED, **overrides}):
        found.setdefault(step.round or 1, {})[step.name] = step.recipe
    return found


def test_the_chain_trains_on_the_sampled_pairs():
    (planned,) = by_round(pairs={**MATH, "pairs_samples": 4}, seed=3, val_size=0.1, max_samples=9).values()
    assert list(planned) == ["pairs", "sample", "base", "oracle", "policy"]
    pairs = planned["pairs"]
    assert pairs == {
        "model_name_or_path": "m", "template": "t", "dataset": "d", "dataset_dir": "data", "seed": 3, "max_samples": 9,
        "pairs_samples": 4, **MATH, "pairs_dir": "out/pairs",
    }  # fmt: skip
    for name in ("sample", "policy"):
        assert (planned[name]["dataset"], planned[name]["dataset_dir"]) == ("pairs", "out/pairs")
        assert planned[name]["val_size"] == 0.1
    for name in ("base", "oracle"):
        assert planned[name]["dataset_dir"] == "out/sample"
    assert not any({*MATH, "pairs_samples"} & set(planned[name]) for name in planned if name != "pairs")


def test_the_other_steps_are_those_of_a_chain_on_the_same_data_set():
    training = {"learning_rate": 0.1, "cutoff_len": 99, "disable_gradient_checkpointing": True}
    alone = by_round(dataset="pairs", dataset_dir="out/pairs", **training)[1]
    sampled = by_round(**MATH, pairs_temperature=0.7, pairs=None, **training)[1]
    assert {name: recipe for name, recipe in sampled.items() if name != "pairs"} == alone
    assert not set(training) & set(sampled["pairs"])  # another value samples nothing anew
    assert sampled["pairs"]["pairs_temperature"] == 0.7
    assert by_round(pairs=False, learning_rate=0.1) == by_round(learning_rate=0.1)


def test_samples_are_the_policys_and_a_section_overrides_shared_keys():
    small = {"model_name_or_path": "small", "lora_rank": 4}
    planned = by_round(base=small, policy={"adapter_name_or_path": "sft"}, pairs_samples=3, pairs={"pairs_samples": 8})
    pairs = planned[1]["pairs"]
    assert (pairs["model_name_or_path"], pairs["adapter_name_or_path"], pairs["pairs_samples"]) == ("m", "sft", 8)
    assert by_round(pairs={"model_name_or_path": "large"})[1]["pairs"]["model_name_or_path"] == "large"


def test_mixing_of_the_prompts_data_sets_is_not_that_of_the_pairs():
    mixing = {"dataset": "a,b", "mix_strategy": "interleave_under", "interleave_probs": "0.5,0.5"}
    planned = by_round(**mixing, pairs={})[1]
    assert mixing.items() <= planned["pairs"].items()
    assert not any({"mix_strategy", "interleave_probs"} & set(planned[name]) for name in ("sample", "policy"))


def test_lora_rounds_stack_adapters_over_the_policy_before():
    first, second, third = by_round(pairs=MATH, rounds=3).values()
    assert list(second) == list(third) == ["pairs", "sample", "oracle", "policy"]
    for before, planned, adapters in (
        (first, second, "out/policy"),
        (second, third, "out/policy,out/round_2/policy"),
    ):
        assert planned["pairs"]["adapter_name_or_path"] == adapters
        for name in ("oracle", "policy"):
            assert (planned[name]["adapter_name_or_path"], planned[name]["create_new_adapter"]) == (adapters, True)
        assert planned["policy"]["oracle_base_model_adapters"] == adapters
        assert planned["policy"]["oracle_model_adapters"] == f"{adapters},{planned['oracle']['output_dir']}"
        assert planned["pairs"]["pairs_seed"] == before["pairs"].get("pairs_seed", 42) + 1
    assert third["sample"]["dataset_dir"] == "out/round_3/pairs"
    steps = plan_steps({**SHARED, "pairs": MATH, "rounds": 3})
    assert steps[-1].title == "round 3, policy"
    assert last_model(steps) == {
        "model_name_or_path": "m", "adapter_name_or_path": "out/policy,out/round_2/policy,out/round_3/policy",
    }  # fmt: skip


def test_full_rounds_start_from_whole_models():
    second = by_round(pairs=MATH, rounds=2, finetuning_type="full", base=False)[2]
    assert "adapter_name_or_path" not in second["pairs"]
    for name in ("pairs", "oracle", "policy"):
        assert second[name]["model_name_or_path"] == "out/policy"
    assert second["policy"]["oracle_base_model"] == "out/policy"
    assert second["policy"]["oracle_model"] == "out/round_2/oracle"
    assert "oracle_base_model_revision" not in by_round(
        pairs=MATH, rounds=2, finetuning_type="full", model_revision="v1"
    )[2]["policy"]  # fmt: skip


def test_quantized_rounds_continue_one_adapter_with_the_policy_before_as_reference():
    rounds = by_round(pairs=MATH, rounds=3, quantization_bit=4, policy={"objective": "dpo"})
    for number, before in ((2, "out/policy"), (3, "out/round_2/policy")):
        planned = rounds[number]
        assert planned["pairs"]["adapter_name_or_path"] == before
        for name in ("oracle", "policy"):
            assert planned[name]["adapter_name_or_path"] == before
            assert "create_new_adapter" not in planned[name]
            _, spec = reference_spec(planned[name])
            assert (spec.model, spec.adapters, spec.quantization_bit) == ("m", (before,), 4)
    own = {"ref_model": "r", "objective": "dpo"}
    kept = by_round(pairs=MATH, rounds=2, quantization_bit=4, policy=own)[2]["policy"]
    assert kept["ref_model"] == "r"
    assert "ref_model_adapters" not in kept


def test_without_an_oracle_each_round_is_pairs_and_policy():
    rounds = by_round(pairs=MATH, rounds=2, oracle=False, policy={"objective": "dpo"})
    assert [list(planned) for planned in rounds.values()] == [["pairs", "policy"]] * 2
    policy = rounds[2]["policy"]
    assert (policy["dataset_dir"], policy["adapter_name_or_path"]) == ("out/round_2/pairs", "out/policy")
    resolve(policy, host_keys=host_keys())


def test_a_small_oracle_starts_from_its_own_base_in_every_round():
    small = {"model_name_or_path": "small"}
    first, second = by_round(pairs=MATH, rounds=2, base=small).values()
    assert "base" not in second
    assert second["oracle"]["adapter_name_or_path"] == first["oracle"]["adapter_name_or_path"] == "out/base"
    assert second["oracle"]["model_name_or_path"] == second["policy"]["oracle_base_model"] == "small"
    assert second["oracle"]["dataset_dir"] == "out/round_2/sample"
    first, second = by_round(pairs=MATH, rounds=2, base=False, oracle=small).values()
    assert second["oracle"]["model_name_or_path"] == "small"
    assert "adapter_name_or_path" not in second["oracle"]


@pytest.mark.parametrize("keys", [{}, {"quantization_bit": 4}, {"finetuning_type": "full"}])
def test_the_policys_own_preference_is_relative_to_the_model_that_it_was_trained_from(keys):
    rounds = by_round(**keys, ref_model="sft", pairs={"judge": "policy"}, rounds=2)
    assert [rounds[number]["pairs"]["ref_model"] for number in (1, 2)] == ["sft", "sft"]
    own = by_round(**keys, pairs={"judge": "policy", "ref_model": "sft"}, rounds=2)
    assert [own[number]["pairs"]["ref_model"] for number in (1, 2)] == ["sft", "sft"]
    assert "ref_model_adapters" not in own[2]["pairs"]
    rounds = by_round(**keys, pairs={"judge": "policy"}, rounds=3)
    assert "ref_model" not in rounds[1]["pairs"]
    for number in (2, 3):
        reference, start = reference_spec(rounds[number]["pairs"])[1], policy_in(rounds[number - 1]["policy"])
        assert reference == start
        assert policy_in(rounds[number]["pairs"]) != reference


@st.composite
def recipes(draw):
    """Draw keys of a pipeline with sampled pairs."""
    keys = {}
    for name, values in {
        "finetuning_type": ("lora", "full", "freeze"), "quantization_bit": (4, 8), "model_revision": ("v1",),
        "adapter_name_or_path": ("sft",), "create_new_adapter": (True,), "eval_dataset": ("held",), "val_size": (0.1,),
        "base": (False, {"model_name_or_path": "small"}, {"lora_rank": 4}), "select_ratio": (0.4,),
        "policy": ({"objective": "tis_dpo"}, {"model_name_or_path": "large"},
                   {"objective": "dpo", "token_scorer": "oracle", "ref_model": "r"}),
        "oracle": ({"kind": "reversed"}, {"quantization_bit": 4}, {"finetuning_type": "full"}),
    }.items():  # fmt: skip
        if draw(st.booleans()):
            keys[name] = draw(st.sampled_from(values))
    whole = keys.get("finetuning_type", "lora") != "lora"
    assume(not (whole and {"adapter_name_or_path", "quantization_bit", "create_new_adapter"} & set(keys)))
    return {**SHARED, **keys, "pairs": MATH}


def planned_or_none(recipe):
    try:
        return plan_steps(recipe)
    except SepoError:
        return None


def names(value):
    return [each for each in str(value or "").split(",") if each.startswith("out/")]


@settings(max_examples=150, deadline=None)
@given(recipe=recipes(), rounds=st.integers(1, 3))
def test_rounds_read_only_what_is_there_and_grow_without_a_change(recipe, rounds):
    steps = planned_or_none({**recipe, "rounds": rounds})
    assume(steps is not None)
    plain = planned_or_none(recipe)
    assert [step.recipe for step in plain] == [step.recipe for step in steps[: len(plain)]]
    more = planned_or_none({**recipe, "rounds": rounds + 1})
    if more is not None:
        assert [step.recipe for step in steps] == [step.recipe for step in more[: len(steps)]]
    outputs = [step.output for step in steps]
    assert len(set(outputs)) == len(outputs)
    made = set()
    for step in steps:
        for key, value in step.recipe.items():
            if key not in ("output_dir", "pairs_dir", "dataset_dir"):
                assert set(names(value)) <= made, (step.title, key)
        folder = step.recipe.get("dataset_dir")
        if step.declares is None:
            assert folder in (*made, "data"), step.title
        else:
            assert folder == f"{step.output.rsplit('/', 1)[0]}/data"
        made.add(step.output)


@settings(max_examples=80, deadline=None)
@given(recipe=recipes())
def test_every_round_samples_from_and_is_relative_to_the_policy_before(recipe):
    steps = planned_or_none({**recipe, "rounds": 3})
    assume(steps is not None)
    rounds = {}
    for step in steps:
        rounds.setdefault(step.round, {})[step.name] = step.recipe
    for number in (1, 2, 3):
        pairs, policy = rounds[number]["pairs"], rounds[number]["policy"]
        assert policy_in(pairs) == policy_in(policy)
        _, resolved = resolve(policy, host_keys=host_keys())
        if number > 1:
            before = rounds[number - 1]["policy"]
            trained = policy_in(policy)
            assert before["output_dir"] in (trained.model, *trained.adapters)
            if policy.get("ref_model") != "r":
                reference = reference_spec(policy)[1]
                assert (reference.model, reference.adapters) == (trained.model, trained.adapters)
            small = rounds[1]["oracle"].get("model_name_or_path") not in (rounds[1]["policy"]["model_name_or_path"],
                                                                          "out/base")  # fmt: skip
            if resolved.oracle and not small and "base" not in recipe and recipe.get("oracle", {}).get("kind") is None:
                base = resolved.oracle.base
                same_model = rounds[1]["policy"]["model_name_or_path"] == "m"
                assert ((base.model, base.adapters) == (trained.model, trained.adapters)) is same_model


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"rounds": 2}, "rounds is 2, but there is no section pairs"),
        ({"rounds": 1}, "rounds is 1, but there is no section pairs"),
        ({"rounds": 2, "pairs": False}, "rounds is 2, but there is no section pairs"),
        ({"rounds": 0, "pairs": {}}, "rounds is 0, expected a whole number of at least 1"),
        ({"rounds": 1.5, "pairs": {}}, "rounds is 1.5, expected a whole number"),
        ({"oracle": False}, "oracle is false, but there is no section pairs"),
        ({"oracle": False, "pairs": {}, "base": {"lora_rank": 4}}, "base is set, but with oracle: false"),
        ({"oracle": False, "pairs": {}, "oracle_sample_ratio": 0.5}, "oracle_sample_ratio is set, but with oracle"),
        ({"policy": {"stage": "rto"}}, "stage is rto for the policy, which samples its responses while it trains"),
        ({"stage": "rto", "policy": {"lora_rank": 4}}, "stage is rto for the policy"),
        ({"stage": "rto"}, "stage is rto for the policy"),
        ({"pairs_samples": 4}, "pairs_samples is set, but there is no section pairs"),
        ({"pairs": {"pairs_seed": "x"}, "rounds": 2}, "pairs_seed is 'x', expected a whole number"),
        ({"pairs": 4}, "section 'pairs' is 4; keys and values are expected"),
        ({"pairs": {"pairs_dir": "p"}}, "pairs_dir is set, but a pipeline writes its pairs to OUTPUT_DIR/pairs"),
        ({"pairs": {}, "pairs_dir": "p"}, "pairs_dir is set, but a pipeline writes"),
        ({"pairs": {}, "policy": {"dataset": "x"}}, "dataset is set for the policy, but with the section pairs"),
        ({"pairs": {}, "tokenized_path": "x"}, "tokenized_path is set on top"),
        ({"pairs": {}, "rounds": 2, "policy": {"resume_from_checkpoint": "x"}},
         "resume_from_checkpoint is set in section 'policy'"),
        ({"pairs": {"model_name_or_path": "x"}, "rounds": 2}, "model_name_or_path is set in section 'pairs', but with"),
        ({"pairs": {}, "rounds": 2, "base": False, "oracle": {"finetuning_type": "full"}},
         "the run in out/round_2/oracle has finetuning_type full, but starts from the adapters out/policy"),
        ({"pairs": {}, "rounds": 3, "oracle": {"quantization_bit": 4}},
         r"out/round_3/oracle has quantization_bit 4, but starts from several adapters \(out/policy,out/round_2/"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(overrides, words):
    with pytest.raises(SepoError, match=words):
        plan_steps({**SHARED, **overrides})


def test_evaluation_data_sets_are_declared_beside_the_sampled_pairs(tmp_path):
    from llamafactory.data.parser import get_dataset_list

    given_, out = tmp_path / "data", tmp_path / "out"
    given_.mkdir()
    held = {"file_name": "held.json", "ranking": True, "columns": {"prompt": "p", "chosen": "c", "rejected": "r"}}
    (given_ / "dataset_info.json").write_text(json.dumps({"held": held, "hub": {"hf_hub_url": "a/b"}, "other": {}}))
    recipe = {**SHARED, "dataset_dir": str(given_), "output_dir": str(out), "eval_dataset": "held,hub", "pairs": {}}
    steps = {step.name: step for step in plan_steps(recipe)}
    policy = steps["policy"]
    assert policy.declares == steps["sample"].declares == str(given_)
    assert steps["base"].declares is steps["oracle"].declares is None
    with pytest.raises(SepoError, match="does not declare the data set 'pairs' of the step 'pairs'"):
        pipeline.declare_pairs(policy)
    (out / "pairs").mkdir(parents=True)
    (out / "pairs" / "dataset_info.json").write_text(
        json.dumps({"pairs": {"file_name": "pairs.json", "ranking": True}})
    )
    with pytest.raises(SepoError, match=r"pairs\.json of the step 'pairs' does not exist; restore it"):
        pipeline.declare_pairs(policy)
    (out / "pairs" / "pairs.json").write_text("[]")
    for _ in range(2):
        pipeline.declare_pairs(policy)
    folder = policy.recipe["dataset_dir"]
    pairs, entry, hub = get_dataset_list(["pairs", "held", "hub"], folder)
    assert pairs.ranking
    assert entry.dataset_name == str(given_ / "held.json")
    assert (entry.ranking, entry.chosen) == (True, "c")
    assert (hub.load_from, hub.dataset_name) == ("hf_hub", "a/b")
    assert (out / "data" / pairs.dataset_name).resolve() == out / "pairs" / "pairs.json"
    assert policy.recipe["media_dir"] == str(given_)


@pytest.mark.parametrize(
    ("eval_dataset", "words"),
    [("absent", "eval_dataset is absent, expected data sets of"), ("pairs", "eval_dataset names 'pairs', which is")],
)
def test_evaluation_data_sets_that_cannot_be_declared_are_refused(tmp_path, eval_dataset, words):
    (tmp_path / "dataset_info.json").write_text(json.dumps({"pairs": {"file_name": "x.json"}}))
    with pytest.raises(SepoError, match=words):
        evaluation_entries({"eval_dataset": eval_dataset}, folder=str(tmp_path))


def test_a_pipeline_whose_pairs_were_removed_ends_with_one_line(tmp_path):
    """Its step is finished by the record, and the next one reads the directory."""
    for keys in ({}, {"eval_dataset": "held"}):
        steps = plan_steps({**SHARED, **keys, "output_dir": str(tmp_path / "out"), "pairs": MATH})
        with pytest.raises(SepoError, match="does not declare the data set 'pairs' of the step 'pairs'"):
            pipeline._run(steps[1], tmp_path / "records")


def test_a_users_data_set_of_the_same_name_is_checked(tmp_path):
    steps = plan_steps({**SHARED, "dataset": "pairs", "dataset_dir": str(tmp_path)})
    assert all(step.pairs is None for step in steps)
    with pytest.raises(SepoError, match=r"dataset_info\.json"):
        check_steps(steps[-1:])


def test_the_step_pairs_is_given_the_secrets_that_its_recipe_file_lacks(tmp_path, monkeypatch):
    token, seen = "hf_" + "a" * 30, []
    (pairs, *_) = plan_steps({**SHARED, "output_dir": str(tmp_path / "out"), "pairs": MATH, "hf_hub_token": token})

    def child(words, *, env, **streams):
        monkeypatch.setenv(reading.SECRETS, env[reading.SECRETS])
        assert token not in (tmp_path / "pairs.yaml").read_text()
        seen.append(pipeline.read_pipeline(tmp_path / "pairs.yaml"))
        return subprocess_of(["true"], **streams)

    subprocess_of = child_runs.subprocess.Popen
    monkeypatch.setattr(child_runs.subprocess, "Popen", child)
    pipeline._run(pairs, tmp_path)
    assert [read["hf_hub_token"] for read in seen] == [token]
    assert reading.SECRETS not in os.environ


def test_a_failed_step_of_pairs_names_what_other_settings_need(tmp_path, monkeypatch):
    (pairs, *_) = plan_steps({**SHARED, "output_dir": str(tmp_path / "out"), "pairs": MATH})
    monkeypatch.setattr(pipeline, "train", lambda *step, **how: 2)
    with pytest.raises(SepoError, match=rf"step 'pairs' failed with exit status 2.* remove {pairs.output} first\. "
                       r"This step alone: .* -m sepo pairs .*pairs\.yaml"):  # fmt: skip
        pipeline._run(pairs, tmp_path)
