"""The kinds, seeds and checkpoints of a pipeline's oracle: the recipes of its steps, and runs of them."""

import json
import math

import pytest

from sepo.cli import main
from sepo.errors import SepoError
from sepo.hosts.llamafactory import pipeline
from sepo.hosts.llamafactory.chain_status import is_oracle, pipeline_progress
from sepo.hosts.llamafactory.chain_steps import Step, plan_steps
from sepo.hosts.llamafactory.recipe import host_keys
from sepo.recipe.resolve import resolve
from tests.support.recipes import BIN, adapter, run, same_weights, write

SHARED = {"model_name_or_path": "m", "template": "t", "dataset": "d", "dataset_dir": "data", "output_dir": "out"}


def steps(oracle, **overrides):
    return {step.name: step.recipe for step in plan_steps({**SHARED, **overrides, "oracle": oracle})}


def oracles_of(policy):
    """Return (oracle, its base) of each oracle of a policy, as models with adapters, and the settings."""
    _, settings = resolve(policy, host_keys=host_keys())
    named = [
        tuple((spec.model, spec.adapters) for spec in (each.oracle, each.base)) for each in settings.oracles.members
    ]
    return named, settings.oracles


def test_a_contrast_of_sft_trains_two_models_from_the_base():
    section = {"kind": "sft_contrast", "lora_rank": 4, "learning_rate": 1.0e-4}
    planned = steps(section, save_steps=500, batch_tokens=4096, pref_beta=0.2)
    assert list(planned) == ["sample", "base", "oracle", "oracle_rejected", "policy"]
    oracle, rejected = planned["oracle"], planned["oracle_rejected"]
    assert (oracle["stage"], oracle["dataset"], oracle["dataset_dir"]) == ("sft", "oracle_answers", "out/sample")
    assert (oracle["adapter_name_or_path"], oracle["create_new_adapter"]) == ("out/base", True)
    assert {name for name in oracle if oracle[name] != rejected[name]} == {"dataset", "output_dir"}
    assert (rejected["dataset"], rejected["output_dir"]) == ("oracle_answers_rejected", "out/oracle_rejected")
    assert not {"objective", "batch_tokens", "ref_model"} & set(oracle)
    named, _ = oracles_of(planned["policy"])
    assert named == [(("m", ("out/base", "out/oracle")), ("m", ("out/base", "out/oracle_rejected")))]
    quantized = steps(section, quantization_bit=4)["oracle"]  # no reference, whatever the host needs for DPO
    assert not [name for name in quantized if name.startswith("ref_")]
    whole = steps({"kind": "sft_contrast"}, finetuning_type="full", base=False)
    assert oracles_of(whole["policy"])[0] == [(("out/oracle", ()), ("out/oracle_rejected", ()))]


@pytest.mark.parametrize(
    ("kind", "keys"), [("ipo", {"objective": "ipo", "ipo_average": False}), ("minor_dpo", {"objective": "minor_dpo"})]
)
def test_a_kind_that_is_an_objective_is_the_short_form_of_its_keys(kind, keys):
    planned = steps({"kind": kind, "pref_beta": 0.2})
    assert planned == steps({**keys, "pref_beta": 0.2})
    _, settings = resolve(planned["oracle"], host_keys=host_keys())
    assert settings.method.name == kind
    assert settings.method.hyperparameters["beta"] == 0.2
    if kind == "ipo":
        assert settings.method.hyperparameters["average"] is False
        assert steps({"kind": "ipo", "ipo_average": True})["oracle"]["ipo_average"] is True


@pytest.mark.parametrize("kind", ["dpo", "reversed", "sft_contrast", "ipo"])
def test_every_seed_trains_an_oracle_and_the_first_is_that_of_one_seed(kind):
    second = {"reversed": ["oracle_reversed"], "sft_contrast": ["oracle_rejected"]}.get(kind, [])
    one, three = (steps({"kind": kind, "seeds": seeds}) for seeds in ([7], [7, 8, 9]))
    assert list(one) == ["sample", "base", "oracle", *second, "policy"]
    trained = [name for name in three if is_oracle(name)]
    assert trained == [f"{name}{end}" for end in ("", "_2", "_3") for name in ("oracle", *second)]
    assert all(one[name] == three[name] for name in one if name != "policy")  # finished steps remain so
    for name in trained:
        number = int(name.rpartition("_")[2]) if name[-1].isdigit() else 1
        plain = {**three[name.removesuffix(f"_{number}")], "seed": 6 + number, "output_dir": f"out/{name}"}
        assert three[name] == plain
    named, _ = oracles_of(three["policy"])
    assert [oracle[1][-1] for oracle, _ in named] == ["out/oracle", "out/oracle_2", "out/oracle_3"]
    if second:
        assert [base[1][-1] for _, base in named] == [f"out/{second[0]}{end}" for end in ("", "_2", "_3")]
    else:
        assert {base for _, base in named} == {("m", ("out/base",))}
    assert oracles_of(one["policy"])[0] == oracles_of(steps({"kind": kind})["policy"])[0]
    whole = steps({"kind": kind, "seeds": [7, 8]}, finetuning_type="full")
    assert [oracle[0] for oracle, _ in oracles_of(whole["policy"])[0]] == ["out/oracle", "out/oracle_2"]


@pytest.mark.parametrize(("count", "total"), [(2, 8), (3, 24), (3, 25), (3, 5), (5, 30), (4, 1000), (2, 2)])
def test_checkpoints_are_evenly_spaced_over_the_second_half(count, total):
    planned = steps({"checkpoints": count}, save_steps=500)
    oracle = planned["oracle"]
    assert oracle["save_total_limit"] == count
    assert planned["base"]["save_steps"] == 500
    every = math.ceil(total * oracle["save_steps"])  # as transformers reads a share of the steps
    saved = sorted({*range(every, total + 1, every), total})
    assert len(saved) >= count
    assert saved[-count] >= total / 2 - every / 2
    if total % (2 * count) == 0:
        assert saved[-count:] == [total * part // (2 * count) for part in range(count + 1, 2 * count + 1)]
    policy = planned["policy"]
    assert policy["oracle_checkpoints"] == count
    assert "oracle_base_checkpoints" not in policy
    assert policy["oracle_model_adapters"] == "out/base,out/oracle"


def test_checkpoints_of_a_second_model_are_compared_step_by_step():
    planned = steps({"checkpoints": 2, "kind": "reversed", "seeds": [1, 2]})
    assert planned["oracle_reversed_2"]["save_total_limit"] == 2
    _, oracles = oracles_of(planned["policy"])
    assert (oracles.checkpoints, oracles.base_checkpoints, len(oracles.members)) == (2, True, 2)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"kind": "ipo", "objective": "dpo"}, "sets objective and kind ipo, which is an objective, too; remove one"),
        ({"kind": "minor_dpo", "stage": "dpo"}, "sets stage dpo, but kind minor_dpo is an objective of stage sepo"),
        ({"kind": "sft_contrast", "stage": "dpo"}, "sets stage dpo, but kind sft_contrast is SFT"),
        ({"kind": "sft_contrast", "objective": "dpo"}, "sets objective, but kind sft_contrast trains without"),
        ({"kind": "sft_contrast", "pref_beta": 0.1}, "sets pref_beta, but kind sft_contrast trains without"),
        ({"kind": "sft_contrast", "ref_model": "r"}, "sets ref_model, but kind sft_contrast trains without"),
        ({"kind": "sft_contrast", "stop": "accuracy"}, "sets stop: accuracy, but kind sft_contrast is SFT"),
        ({"kind": "sft_contrast", "dataset": "d"}, "dataset is set for the oracle, and with oracle.kind sft_contrast"),
        ({"seeds": [1, 1]}, r"oracle.seeds is \[1, 1\], expected a list of different whole numbers"),
        ({"seeds": [1, 2], "seed": 3}, "sets seed and seeds; remove seed"),
        ({"seeds": [1, 2], "hub_model_id": "x"}, "hub_model_id is set for the oracle, and with several oracle.seeds"),
        ({"checkpoints": 1}, "oracle.checkpoints is 1, expected a whole number of at least 2"),
        ({"checkpoints": 2, "stop": "loss"}, "sets stop: loss, which keeps the best checkpoint, and checkpoints"),
        ({"checkpoints": 2, "save_steps": 10}, "sets save_steps and checkpoints, which are saved evenly"),
    ],
)
def test_contradictions_are_refused_in_one_line(section, words):
    with pytest.raises(SepoError, match=words) as caught:
        steps(section)
    assert "\n" not in str(caught.value)


def test_a_policy_that_names_the_second_model_is_refused():
    with pytest.raises(SepoError, match=r"oracle_base_model is set, but with oracle\.kind sft_contrast it names"):
        steps({"kind": "sft_contrast"}, policy={"oracle_base_model": "m"})


def test_rejected_responses_are_written_as_the_chosen_ones_are(tmp_path):
    from sepo.hosts.llamafactory.sample import REJECTED_ANSWERS, declare_derived

    turns = [{"from": "human", "value": "q"}]
    answers = {side: {"from": "gpt", "value": side} for side in ("chosen", "rejected")}
    (tmp_path / "oracle_pairs.json").write_text(
        json.dumps([{"conversations": turns, "system": "s", "tools": "", **answers}])
    )
    columns = {"messages": "conversations", "system": "system", "tools": "tools"}
    chosen = {"file_name": "oracle_answers.json", "formatting": "sharegpt", "columns": columns}
    pairs = {**chosen, "file_name": "oracle_pairs.json", "ranking": True}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"oracle_pairs": pairs, "oracle_answers": chosen}))
    for _ in range(2):
        declare_derived(REJECTED_ANSWERS, tmp_path)
        known = json.loads((tmp_path / "dataset_info.json").read_text())
        assert known[REJECTED_ANSWERS] == {**chosen, "file_name": f"{REJECTED_ANSWERS}.json"}
        assert known["oracle_answers"] == chosen
        assert json.loads((tmp_path / f"{REJECTED_ANSWERS}.json").read_text()) == [
            {"conversations": [*turns, answers["rejected"]], "system": "s", "tools": ""}
        ]
    with pytest.raises(SepoError, match="does not declare the data set 'oracle_pairs' of the step 'sample'"):
        declare_derived(REJECTED_ANSWERS, tmp_path / "elsewhere")


def test_the_status_lists_every_oracle_in_the_order_of_the_steps(tmp_path, capsys):
    planned = plan_steps({**SHARED, "output_dir": str(tmp_path), "oracle": {"kind": "reversed", "seeds": [1, 2]}})
    (tmp_path / "pipeline").mkdir()
    for step in planned[:-1]:
        pipeline.record_step(step, tmp_path / "pipeline")
    (tmp_path / "pipeline" / "policy.yaml").write_text("{}")
    (tmp_path / "pipeline" / "oracle_notes.done.json").write_text("{}")  # no step of a pipeline
    found = pipeline_progress(tmp_path)["steps"]
    assert [step["name"] for step in found] == [step.name for step in planned]
    assert [step["state"] for step in found] == ["finished"] * 6 + ["started"]
    assert main(["status", str(tmp_path)]) == 0
    assert "oracle_reversed_2: finished" in capsys.readouterr().out


def test_a_dry_run_lists_every_oracle_with_its_memory(world, tmp_path, capsys):
    recipe = {
        "model_name_or_path": str(world / "policy"), "template": "chatml", "dataset_dir": str(world / "data"),
        "dataset": "tiny_pairs", "use_cpu": True, "output_dir": str(tmp_path / "out"), "base": False,
        "oracle": {"seeds": [1, 2], "checkpoints": 2}, "policy": {"oracle_scores": "step_mean"},
    }  # fmt: skip
    assert main(["pipeline", str(write(recipe, tmp_path / "pipeline.yaml")), "--dry-run"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines() if str(tmp_path / "out") in line]
    assert [row[0] for row in shown] == ["sample", "oracle", "oracle_2", "policy"]
    assert ["MiB" in row for row in shown] == [False, True, True, True]


def test_an_oracle_of_one_seed_before_kinds_had_seeds_is_not_trained_again(tmp_path):
    before = steps({})["oracle"]
    pipeline.record_step(Step("oracle", before), tmp_path)
    assert pipeline.is_step_finished(Step("oracle", steps({"seeds": None})["oracle"]), tmp_path)


@pytest.mark.host
def test_a_chain_with_a_contrast_of_sft_seeds_and_checkpoints(world, tmp_path):
    """Four trainings of two models, and a policy with the mean of their checkpoints' scores."""
    out = tmp_path / "out"
    recipe = {
        "model_name_or_path": str(world / "policy"), "template": "chatml", "dataset_dir": str(world / "data"),
        "dataset": "tiny_pairs", "cutoff_len": 128, "finetuning_type": "lora", "lora_rank": 2, "max_steps": 4,
        "per_device_train_batch_size": 2, "learning_rate": 1.0e-2, "report_to": "none", "use_cpu": True,
        "output_dir": str(out), "token_scores_dir": str(tmp_path / "scores"), "oracle_sample_ratio": 0.5,
        "logging_steps": 1, "base": False, "oracle": {"kind": "sft_contrast", "seeds": [3, 4], "checkpoints": 2},
        "policy": {"oracle_scores": "first_error", "max_steps": 1},
    }  # fmt: skip
    path = write(recipe, tmp_path / "pipeline.yaml")
    done = run([BIN / "sepo", "pipeline", path], cwd=tmp_path, forks=True)
    assert "[6/6] policy: done" in done.stdout
    trained = [adapter(out / name) for name in ("oracle", "oracle_rejected", "oracle_2", "oracle_rejected_2")]
    assert not any(same_weights(one, other) for at, one in enumerate(trained) for other in trained[at + 1 :])
    assert sorted(place.name for place in (out / "oracle").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    settings = json.loads((out / "policy" / "sepo_settings.json").read_text())
    assert (len(settings["oracles"]["members"]), settings["oracles"]["checkpoints"]) == (2, 2)
    # A store for each of four oracles, and one for what is made of them.
    assert len(list((tmp_path / "scores").glob("[0-9a-f]*"))) == 5
    again = run([BIN / "sepo", "pipeline", path], cwd=tmp_path, fresh=True)
    assert again.stdout.count("finished before") == 6
