"""`sepo pipeline`: the recipes of its steps, and one real run."""

import json
import shutil

import pytest
import torch

from sepo.cli import main
from sepo.errors import SepoError
from sepo.hosts.llamafactory import pipeline
from sepo.hosts.llamafactory.chain_steps import Step, plan_steps
from sepo.hosts.llamafactory.child_runs import write_record
from sepo.hosts.llamafactory.pipeline import read_pipeline
from sepo.hosts.llamafactory.recipe import host_keys
from sepo.recipe.resolve import resolve
from sepo.score_store import ScoreStore
from tests.support.recipes import BIN, adapter, environment, run, same_weights, write
from tests.support.rows import prepared

SHARED = {"model_name_or_path": "m", "template": "t", "dataset": "d", "dataset_dir": "data", "output_dir": "out"}


def steps(**overrides):
    return {step.name: step.recipe for step in plan_steps({**SHARED, **overrides})}


def test_lora_chain_keeps_the_sft_adapter_in_oracle_and_reference():
    planned = steps(finetuning_type="lora", select_ratio=0.4, val_size=0.1, seed=7, base={"lora_rank": 4})
    assert list(planned) == ["sample", "base", "oracle", "policy"]
    assert planned["base"]["stage"] == "sft"
    assert planned["base"]["dataset"] == "oracle_answers"
    assert planned["base"]["lora_rank"] == 4
    oracle = planned["oracle"]
    assert (oracle["stage"], oracle["objective"]) == ("sepo", "dpo")
    assert (oracle["dataset"], oracle["dataset_dir"]) == ("oracle_pairs", "out/sample")
    assert (oracle["adapter_name_or_path"], oracle["create_new_adapter"]) == ("out/base", True)
    policy = planned["policy"]
    assert policy["oracle_base_model"] == "m"
    assert policy["oracle_model_adapters"] == "out/base,out/oracle"
    assert policy["oracle_base_model_adapters"] == "out/base"
    assert (policy["stage"], policy["dataset"], policy["output_dir"]) == ("sepo", "d", "out/policy")
    # The sample excludes the policy's validation rows, so only the policy evaluates on them.
    assert policy["val_size"] == planned["sample"]["val_size"] == 0.1
    assert "val_size" not in planned["base"]
    assert "val_size" not in oracle
    assert "select_ratio" not in oracle
    assert all(planned[name]["seed"] == 7 for name in planned)


@pytest.mark.parametrize(
    ("section", "stage"),
    [
        ({}, ("sepo", "dpo")),
        ({"pref_loss": "sigmoid"}, ("sepo", "dpo")),
        ({"objective": "ipo"}, ("sepo", "ipo")),
        ({"stage": "selective_dpo"}, ("selective_dpo", None)),
        ({"stage": "dpo"}, ("dpo", None)),
        ({"pref_loss": "kto_pair"}, ("dpo", None)),
        ({"pref_bco_weight": 0.5}, ("dpo", None)),
    ],
)
def test_the_oracle_is_trained_by_sepo_unless_its_recipe_needs_the_host(section, stage):
    oracle = steps(batch_tokens=4096, select_ratio=0.4, oracle=section)["oracle"]
    assert (oracle["stage"], oracle.get("objective")) == stage
    assert ("batch_tokens" in oracle) is (stage[0] != "dpo")
    assert "select_ratio" not in oracle
    if stage[0] != "dpo":
        resolve(oracle, host_keys=host_keys())


def test_an_oracle_that_the_hosts_dpo_trained_is_not_trained_again(tmp_path):
    planned = steps()["oracle"]
    before = {name: value for name, value in planned.items() if name != "objective"} | {"stage": "dpo"}
    pipeline.record_step(Step("oracle", before), tmp_path)
    assert pipeline.is_step_finished(Step("oracle", planned), tmp_path)
    with pytest.raises(SepoError, match="was run with other settings"):
        pipeline.is_step_finished(Step("oracle", {**planned, "objective": "ipo"}), tmp_path)


@pytest.mark.parametrize(
    ("overrides", "weight"),
    [
        ({}, 1.0),
        ({"oracle": {"kind": "minor_dpo"}}, 1.0),
        ({"oracle": {"kind": "reversed"}}, 1.0),
        ({"oracle": {"pref_ftx": 0.0}}, 0.0),
        ({"pref_ftx": 0.3}, 0.3),
        ({"oracle": {"objective": "ipo"}}, 1.0),
        ({"oracle": {"objective": "orpo"}}, None),
        ({"oracle": {"stage": "dpo"}}, None),
        ({"oracle": {"kind": "sft_contrast"}}, None),
    ],
)
def test_an_oracle_keeps_chosen_responses_likely_unless_its_recipe_sets_an_objective(overrides, weight):
    planned = steps(**overrides)
    trained = [recipe for name, recipe in planned.items() if name.startswith("oracle")]
    assert [recipe.get("pref_ftx") for recipe in trained] == [weight] * len(trained)
    assert planned["policy"].get("pref_ftx") == overrides.get("pref_ftx")


@pytest.mark.parametrize("end", [".done.json", ".started.json"])
def test_an_oracle_that_was_begun_without_the_likelihood_is_continued_without_it(tmp_path, end):
    recipe = {**SHARED, "output_dir": str(tmp_path), "oracle": {"learning_rate": 1e-5}}
    planned = plan_steps(recipe)
    assert pipeline.as_begun(planned, recipe) == planned
    oracle = next(step for step in planned if step.name == "oracle")
    before = {name: value for name, value in oracle.recipe.items() if name != "pref_ftx"}
    (tmp_path / "pipeline").mkdir()
    write_record(tmp_path / "pipeline" / f"oracle{end}", before)
    others = [step for step in planned if step.name != "oracle"]
    assert pipeline.as_begun(planned, recipe) == [*others[:-1], Step("oracle", before), others[-1]]
    recipe["oracle"]["pref_ftx"] = 1.0
    assert pipeline.as_begun(planned, recipe) == planned


def test_full_chain_names_whole_models():
    planned = steps(finetuning_type="full")
    assert planned["oracle"]["model_name_or_path"] == "out/base"
    assert "adapter_name_or_path" not in planned["oracle"]
    assert planned["policy"]["oracle_model"] == "out/oracle"
    assert planned["policy"]["oracle_base_model"] == "out/base"


def test_quantized_chain_gives_dpo_the_sft_model_as_reference():
    planned = steps(base={"quantization_bit": 4}, oracle={"quantization_bit": 4})
    oracle = planned["oracle"]
    assert "create_new_adapter" not in oracle
    assert (oracle["ref_model"], oracle["ref_model_adapters"], oracle["ref_model_quantization_bit"]) == (
        "m",
        "out/base",
        4,
    )
    assert planned["policy"]["oracle_model_adapters"] == "out/oracle"
    assert planned["policy"]["oracle_base_model_adapters"] == "out/base"
    assert planned["policy"]["oracle_model_quantization_bit"] == 4


def test_the_oracles_base_has_the_revision_of_the_model_that_it_was_trained_from():
    planned = steps(model_revision="v2")
    assert {planned[name]["model_revision"] for name in ("base", "oracle", "policy")} == {"v2"}
    assert planned["policy"]["oracle_base_model_revision"] == "v2"
    own = {"base": {"model_name_or_path": "small", "model_revision": "v1"}, "model_revision": "v2"}
    planned = steps(**own)
    assert [planned[name]["model_revision"] for name in ("base", "oracle", "policy")] == ["v1", "v1", "v2"]
    policy = planned["policy"]
    assert (policy["oracle_base_model"], policy["oracle_base_model_revision"]) == ("small", "v1")
    for changed in ({"finetuning_type": "full"}, {"policy": {"oracle_base_model": "another"}}):
        assert "oracle_base_model_revision" not in steps(**own, **changed)["policy"]  # a directory; the user's model


def test_base_can_be_skipped_or_have_its_own_data_and_model():
    assert "base" not in steps(base=False)
    assert steps(base=False)["policy"]["oracle_model_adapters"] == "out/oracle"
    planned = steps(base_dataset="chat", base_dataset_dir="other", base={"model_name_or_path": "small"})
    assert (planned["base"]["dataset"], planned["base"]["dataset_dir"]) == ("chat", "other")
    assert planned["oracle"]["model_name_or_path"] == planned["policy"]["oracle_base_model"] == "small"
    assert planned["policy"]["model_name_or_path"] == "m"


NEGATIVE = {"kind": "reversed"}


def test_a_reversed_oracle_is_a_second_model_on_the_exchanged_pairs():
    section = {"lora_rank": 4, "pref_beta": 0.2}
    alone, planned = steps(oracle=section, batch_tokens=4096), steps(oracle={**section, **NEGATIVE}, batch_tokens=4096)
    assert list(planned) == ["sample", "base", "oracle", "oracle_reversed", "policy"]
    assert all(planned[name] == alone[name] for name in ("sample", "base", "oracle"))  # finished steps remain so
    differing = {name for name in planned["oracle"] if planned["oracle"][name] != planned["oracle_reversed"].get(name)}
    assert differing == {"dataset", "output_dir"}
    assert planned["oracle_reversed"].keys() == planned["oracle"].keys()
    reversed_ = planned["oracle_reversed"]
    assert (reversed_["dataset"], reversed_["output_dir"]) == ("oracle_pairs_reversed", "out/oracle_reversed")
    assert steps(oracle={"kind": "dpo"}) == steps() == steps(oracle={"kind": None})


@pytest.mark.parametrize(
    ("keys", "oracle", "negative", "one_set"),
    [
        ({}, ("m", ("out/base", "out/oracle")), ("m", ("out/base", "out/oracle_reversed")), True),
        ({"base": False}, ("m", ("out/oracle",)), ("m", ("out/oracle_reversed",)), True),
        ({"finetuning_type": "full"}, ("out/oracle", ()), ("out/oracle_reversed", ()), False),
        ({"finetuning_type": "full", "base": False}, ("out/oracle", ()), ("out/oracle_reversed", ()), False),
        ({"quantization_bit": 4}, ("m", ("out/oracle",)), ("m", ("out/oracle_reversed",)), True),
        ({"base": {"finetuning_type": "full"}, "oracle": {"finetuning_type": "lora"}},
         ("out/base", ("out/oracle",)), ("out/base", ("out/oracle_reversed",)), True),
        ({"base": False, "adapter_name_or_path": "sft"}, ("m", ("out/oracle",)), ("m", ("out/oracle_reversed",)), True),
        ({"base": False, "adapter_name_or_path": "sft", "create_new_adapter": True},
         ("m", ("sft", "out/oracle")), ("m", ("sft", "out/oracle_reversed")), True),
    ],
)  # fmt: skip
def test_the_policys_scores_compare_the_oracle_with_the_reversed_one(keys, oracle, negative, one_set):
    section = {**keys.get("oracle", {}), **NEGATIVE}
    policy = steps(**{**keys, "oracle": section, "model_revision": "v1"})["policy"]
    _, settings = resolve(policy, host_keys=host_keys())
    spec = settings.oracle
    assert (spec.oracle.model, spec.oracle.adapters) == oracle
    assert (spec.base.model, spec.base.adapters) == negative
    assert spec.one_set_of_weights is one_set
    assert {spec.oracle.revision, spec.base.revision} == {None if oracle[0].startswith("out/") else "v1"}
    assert spec.oracle.quantization_bit == spec.base.quantization_bit == keys.get("quantization_bit")


def test_an_adapter_below_the_oracle_is_its_base():
    keys = {"base": False, "adapter_name_or_path": "sft"}
    for more, trained in (({}, "out/oracle"), ({"create_new_adapter": True}, "sft,out/oracle")):
        policy = steps(**keys, **more)["policy"]
        assert policy["oracle_model_adapters"] == trained
        assert policy["oracle_base_model_adapters"] == "sft"
    planned = steps(adapter_name_or_path="sft", create_new_adapter=True)  # the base has an adapter of its own over it
    assert planned["oracle"]["adapter_name_or_path"] == "sft,out/base"
    assert planned["policy"]["oracle_base_model_adapters"] == "sft,out/base"
    assert planned["policy"]["oracle_model_adapters"] == "sft,out/base,out/oracle"
    assert steps(adapter_name_or_path="sft")["oracle"]["adapter_name_or_path"] == "out/base"  # which continues it


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            {"oracle": {"kind": "reverse"}},
            r"oracle.kind is 'reverse', expected one of dpo, ipo, minor_dpo, reversed, sft_contrast\.$",
        ),
        ({"oracle": {"kind": ["dpo", "reversed"]}}, "oracle.kind is 'dpo,reversed'"),
        ({"oracle": {**NEGATIVE, "dataset": "d"}}, "dataset is set for the oracle, and with oracle.kind reversed"),
        ({"oracle": {**NEGATIVE, "dataset_dir": "d"}}, "dataset_dir is set for the oracle"),
        ({"oracle": {**NEGATIVE, "eval_dataset": "d"}}, "eval_dataset is set for the oracle"),
        ({"oracle": {**NEGATIVE, "hub_model_id": "d"}}, "hub_model_id is set for the oracle"),
        ({"oracle": NEGATIVE, "tokenized_path": "d"}, "tokenized_path is set for the oracle"),
        ({"oracle": {**NEGATIVE, "resume_from_checkpoint": "d"}}, "resume_from_checkpoint is set for the oracle"),
        ({"oracle": NEGATIVE, "policy": {"oracle_base_model": "m"}}, "oracle_base_model is set, but with oracle.kind"),
        ({"oracle": NEGATIVE, "oracle_base_model_adapters": "m"}, "oracle_base_model_adapters is set, but"),
        ({"oracle_sample_ratio": 0}, "oracle_sample_ratio is 0"),
        ({"oracle_sample_ratio": 1.5}, "oracle_sample_ratio is 1.5"),
        ({"output_dir": None}, "output_dir is missing"),
        ({"policy": "sepo"}, "section 'policy' is 'sepo'"),
    ],
)
def test_wrong_recipes_are_refused(overrides, words):
    with pytest.raises(SepoError, match=words):
        steps(**overrides)


@pytest.mark.parametrize("keys", [{}, {"finetuning_type": "full"}, {"oracle": {"quantization_bit": 4}}])
def test_a_step_without_a_model_is_refused(keys, tmp_path):
    recipe = {**SHARED, **keys, "model_name_or_path": None, "output_dir": str(tmp_path / "out")}
    for recipe_ in (recipe, {name: value for name, value in recipe.items() if value is not None}):
        with pytest.raises(SepoError, match="step 'base' has no model_name_or_path; set it on top or in its section"):
            pipeline.run_pipeline(recipe_)
    assert not (tmp_path / "out").exists()


def test_overrides_reach_sections(tmp_path):
    path = write({**SHARED, "policy": {"sepo_gamma": 1.0}}, tmp_path / "r.yaml")
    recipe = read_pipeline(path, ["policy.sepo_gamma=2", "seed=5"])
    assert recipe["policy"]["sepo_gamma"] == 2
    assert recipe["seed"] == 5
    with pytest.raises(SepoError, match="'seed' is not an override"):
        read_pipeline(path, ["seed"])
    with pytest.raises(SepoError, match="does not exist"):
        read_pipeline(tmp_path / "none.yaml")


def test_records_of_finished_steps_hold_no_tokens(tmp_path):
    """A token that was rotated changes no step."""
    token, rotated = "hf_" + "a" * 30, "hf_" + "b" * 30
    step = Step("base", {"model_name_or_path": "m", "output_dir": str(tmp_path / "base"), "hf_hub_token": token})
    pipeline.record_step(step, tmp_path)
    assert token not in (tmp_path / "base.done.json").read_text()
    changed = Step("base", {**step.recipe, "hf_hub_token": rotated})
    assert pipeline.is_step_finished(changed, tmp_path)
    with pytest.raises(SepoError, match="model_name_or_path was 'm', now 'n'") as caught:
        pipeline.is_step_finished(Step("base", {**changed.recipe, "model_name_or_path": "n"}), tmp_path)
    assert token not in str(caught.value)
    assert rotated not in str(caught.value)


def test_a_token_that_an_earlier_version_recorded_is_removed(tmp_path):
    recipe = {"model_name_or_path": "m", "hf_hub_token": "hf_" + "a" * 30}
    (tmp_path / "base.done.json").write_text(json.dumps(recipe))
    assert pipeline.is_step_finished(Step("base", recipe), tmp_path)
    assert "hf_a" not in (tmp_path / "base.done.json").read_text()


def test_a_dry_run_lists_the_steps_with_their_memory_and_runs_nothing(world, tmp_path, capsys):
    recipe = {
        "model_name_or_path": str(world / "policy"), "template": "chatml", "dataset_dir": str(world / "data"),
        "dataset": "tiny_pairs", "use_cpu": True, "output_dir": str(tmp_path / "out"), "oracle": NEGATIVE,
    }  # fmt: skip
    path = write(recipe, tmp_path / "pipeline.yaml")

    def rows():
        assert main(["pipeline", str(path), "--dry-run"]) == 0
        return [line.split() for line in capsys.readouterr().out.splitlines() if str(tmp_path / "out") in line]

    shown = rows()
    assert not (tmp_path / "out").exists()
    assert [row[0] for row in shown] == ["sample", "base", "oracle", "oracle_reversed", "policy"]
    assert ["MiB" in row for row in shown] == [False, False, True, True, True]
    assert all(row[1:4] == ["to", "be", "run"] for row in shown)
    (tmp_path / "out" / "pipeline").mkdir(parents=True)
    for step in plan_steps(recipe)[:3]:
        pipeline.record_step(step, tmp_path / "out" / "pipeline")
    assert [row[1] for row in rows()] == ["finished"] * 3 + ["to"] * 2


@pytest.mark.parametrize("name", ["base", "oracle", "oracle_reversed", "policy"])
@pytest.mark.parametrize(
    ("left", "kept"),
    [
        ({"adapter_model.safetensors": ""}, None),  # killed after the run, before its record; the host refuses that
        ({"checkpoint-2/trainer_state.json": "{}", "checkpoint-4/trainer_state.json": "{"}, ["checkpoint-2"]),
    ],
)
def test_a_step_that_was_killed_is_resumed_or_begins_again(world, tmp_path, monkeypatch, name, left, kept):
    recipe = {
        "model_name_or_path": str(world / "policy"), "template": "chatml", "dataset_dir": str(world / "data"),
        "dataset": "tiny_pairs", "output_dir": str(tmp_path / "out"), "oracle": NEGATIVE,
    }  # fmt: skip
    found, killed = [], []

    def train(step, file):
        output = tmp_path / "out" / file.stem
        assert step["output_dir"] == str(output)
        found.append((file.stem, sorted(p.name for p in output.iterdir()) if output.exists() else None))
        if file.stem == name and not killed:
            for path, text in left.items():
                (output / path).parent.mkdir(parents=True, exist_ok=True)
                (output / path).write_text(text)
            killed.append(name)
            raise KeyboardInterrupt
        return 0

    monkeypatch.setattr(pipeline, "train", train)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run_pipeline(recipe)
    names = ["base", "oracle", "oracle_reversed", "policy"]
    place = names.index(name)
    assert found == [(each, None) for each in names[: place + 1]]
    found.clear()
    pipeline.run_pipeline(recipe)
    assert found == [(name, kept), *((each, None) for each in names[place + 1 :])]
    pipeline.run_pipeline(recipe)
    assert len(found) == len(names) - place


def test_a_directory_that_no_attempt_of_the_chain_left_is_not_removed(world, tmp_path, monkeypatch):
    recipe = {
        "model_name_or_path": str(world / "policy"), "template": "chatml", "dataset_dir": str(world / "data"),
        "dataset": "tiny_pairs", "output_dir": str(tmp_path / "out"), "base": False,
    }  # fmt: skip
    (tmp_path / "out" / "oracle").mkdir(parents=True)
    (tmp_path / "out" / "oracle" / "mine").touch()
    monkeypatch.setattr(pipeline, "train", lambda step, file: 1)
    for changed in ({}, {"learning_rate": 0.5}):  # the second time, the attempt before had other settings
        with pytest.raises(SepoError, match="step 'oracle' failed with exit status 1"):
            pipeline.run_pipeline({**recipe, **changed})
        assert (tmp_path / "out" / "oracle" / "mine").is_file()


def test_a_failed_reversed_oracle_ends_the_chain(world, tmp_path, monkeypatch):
    recipe = {
        "model_name_or_path": str(world / "policy"), "template": "chatml", "dataset_dir": str(world / "data"),
        "dataset": "tiny_pairs", "output_dir": str(tmp_path / "out"), "oracle": NEGATIVE,
    }  # fmt: skip
    trained = []
    monkeypatch.setattr(pipeline, "train", lambda step, file: trained.append(file.stem) or len(trained) // 3)
    with pytest.raises(SepoError, match=r"step 'oracle_reversed' failed with exit status 1.*This step alone: .*"
                       r"pipeline/oracle_reversed\.yaml"):  # fmt: skip
        pipeline.run_pipeline(recipe)
    assert trained == ["base", "oracle", "oracle_reversed"]


def scores_by_hand(model, oracle, negative, rows):
    """Return the scores of both responses of each row, from full logits of two whole models in float64.

    The adapters are added to the weights as products of their matrices.
    """
    from transformers import AutoModelForCausalLM

    def whole(adapters):
        made = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
        weights = dict(made.named_parameters())
        for folder in adapters:
            settings, matrices = json.loads((folder / "adapter_config.json").read_text()), adapter(folder)
            assert matrices
            for name in [name for name in matrices if ".lora_A." in name]:
                first, second = (matrices[name.replace("lora_A", part)].double() for part in ("lora_A", "lora_B"))
                weight = weights[name.removeprefix("base_model.model.").replace(".lora_A", "")]
                weight.data += settings["lora_alpha"] / settings["r"] * second @ first
        return made

    models = whole(oracle), whole(negative)
    found = {}
    for side in ("chosen", "rejected"):
        found[side] = []
        for row in rows:
            ids, labels = (torch.tensor(row[f"{side}_{what}"]) for what in ("input_ids", "labels"))
            with torch.no_grad():
                ratio = [made(ids[None]).logits[0, :-1].log_softmax(-1) for made in models]
            picked = (ratio[0] - ratio[1]).gather(1, ids[1:, None])[:, 0]
            found[side].append(picked[labels[1:] != -100].tolist())
    return found


@pytest.mark.host
def test_a_chain_with_a_reversed_oracle_scores_by_the_difference_of_the_two(world, tmp_path):
    from transformers import AutoTokenizer

    out = tmp_path / "out"
    recipe = {
        "model_name_or_path": str(world / "policy"), "template": "chatml", "dataset_dir": str(world / "data"),
        "dataset": "tiny_pairs", "cutoff_len": 128, "finetuning_type": "lora", "lora_rank": 2, "max_steps": 3,
        "per_device_train_batch_size": 2, "learning_rate": 1.0e-2, "report_to": "none", "use_cpu": True, "seed": 5,
        "output_dir": str(out), "token_scores_dir": str(tmp_path / "scores"), "oracle_sample_ratio": 0.5,
        "logging_steps": 1, "save_steps": 1, "oracle": {"kind": "reversed", "pref_beta": 0.2},
        "policy": {"objective": "tis_dpo", "tis_clip": 0.5},
    }  # fmt: skip
    path = write(recipe, tmp_path / "pipeline.yaml")
    done = run([BIN / "sepo", "pipeline", path], cwd=tmp_path, forks=True)
    assert "[4/5] oracle_reversed: done" in done.stdout
    trained = adapter(out / "oracle_reversed")
    assert not same_weights(trained, adapter(out / "oracle"))

    # The scores are those of two whole models.
    rows = prepared(world / "data", AutoTokenizer.from_pretrained(world / "policy"), dataset="tiny_pairs", carry=False)
    (store,) = (tmp_path / "scores").glob("[0-9a-f]*")
    table = ScoreStore.at(store).table()
    chains = ([out / "base", out / name] for name in ("oracle", "oracle_reversed"))
    expected = scores_by_hand(world / "policy", *chains, rows["train_dataset"])
    for side, lists in expected.items():
        assert max(abs(score) for scores in lists for score in scores) > 0.1
        for scores, stored in zip(lists, table[f"{side}_scores"].to_pylist(), strict=True):
            assert stored == pytest.approx(scores, abs=2e-4)

    # The reversed model is the oracle of a file whose responses are exchanged.
    pairs = json.loads((out / "sample" / "oracle_pairs.json").read_text())
    (tmp_path / "exchanged").mkdir()
    exchanged = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in pairs]
    (tmp_path / "exchanged" / "oracle_pairs.json").write_text(json.dumps(exchanged))
    info = json.loads((out / "sample" / "dataset_info.json").read_text())
    (tmp_path / "exchanged" / "dataset_info.json").write_text(json.dumps({"d": info["oracle_pairs"]}))
    words = ["dataset=d", f"dataset_dir={tmp_path / 'exchanged'}", f"output_dir={tmp_path / 'by_hand'}"]
    run([BIN / "sepo", "train", out / "pipeline" / "oracle.yaml", *words], cwd=tmp_path)
    assert same_weights(adapter(tmp_path / "by_hand"), trained)

    # Killed while the reversed model is trained, over a sample that an earlier version drew.
    del info["oracle_pairs_reversed"]
    (out / "sample" / "dataset_info.json").write_text(json.dumps(info))
    for name in ("oracle_reversed", "policy"):
        (out / "pipeline" / f"{name}.done.json").unlink()
    shutil.rmtree(out / "policy")
    for name in ("checkpoint-2", "checkpoint-3"):
        shutil.rmtree(out / "oracle_reversed" / name)
    (out / "oracle_reversed" / "adapter_model.safetensors").unlink()
    again = run([BIN / "sepo", "pipeline", path], cwd=tmp_path, forks=True)
    assert again.stdout.count("finished before") == 3
    assert "Resuming training from" in again.stdout + again.stderr
    assert same_weights(adapter(out / "oracle_reversed"), trained)


@pytest.mark.host
def test_chain_runs_skips_what_is_finished_and_refuses_other_settings(world, tmp_path):
    recipe = {
        "model_name_or_path": str(world / "policy"), "template": "chatml", "dataset_dir": str(world / "data"),
        "dataset": "tiny_pairs", "cutoff_len": 128, "finetuning_type": "lora", "lora_rank": 2, "max_steps": 2,
        "per_device_train_batch_size": 2, "learning_rate": 1.0e-2, "report_to": "none", "use_cpu": True, "seed": 5,
        "output_dir": str(tmp_path / "out"), "token_scores_dir": str(tmp_path / "scores"), "oracle_sample_ratio": 0.5,
        "val_size": 4, "logging_steps": 1,
    }  # fmt: skip
    path = write(recipe, tmp_path / "pipeline.yaml")
    done = run([BIN / "sepo", "pipeline", path], cwd=tmp_path, forks=True)
    assert "[4/4] policy: done" in done.stdout
    pairs = json.loads((tmp_path / "out" / "sample" / "oracle_pairs.json").read_text())
    answers = json.loads((tmp_path / "out" / "sample" / "oracle_answers.json").read_text())
    assert len(pairs) == len(answers) == 10  # half of the 20 training rows; 4 of the 24 are held out
    assert [row["chosen"] for row in pairs] == [row["conversations"][-1] for row in answers]
    settings = json.loads((tmp_path / "out" / "policy" / "sepo_settings.json").read_text())
    assert settings["oracle"]["oracle"]["adapters"] == [str(tmp_path / "out" / name) for name in ("base", "oracle")]
    assert adapter(tmp_path / "out" / "policy")
    again = run([BIN / "sepo", "pipeline", path], cwd=tmp_path, fresh=True)
    assert again.stdout.count("finished before") == 4
    changed = run([BIN / "sepo", "pipeline", path, "base.lora_rank=4"], cwd=tmp_path, expect=2)
    assert "step 'base'" in changed.stderr
    assert "lora_rank was 2, now 4" in changed.stderr
    unknown = run([BIN / "sepo", "pipeline", path, "oracle.lora_rnk=4"], cwd=tmp_path, expect=2, env=environment())
    assert "unknown key 'lora_rnk'. Did you mean 'lora_rank'?" in unknown.stderr
