"""Stage rto in LLaMA-Factory, end to end with tiny models: rewards, selection, adapters, resumption, refusals."""

import json
import sys

import pytest
import torch

from sepo.errors import SepoError
from tests.support import tiny
from tests.support.recipes import WORKER, adapter, environment, logged, run, same_weights, sepo_recipe

GRPO = {"oracle_model": None, "oracle_base_model": None, "rto_beta1": 0, "rto_beta2": 0}
WAYS = {
    "oracle": {"token_scorer": "oracle", "rto_oracle_clip": 0.05},
    "entropy": {"token_scorer": "entropy", "select_ratio": 0.5, "rto_iterations": 2, "rto_kl_beta": 0.1},
    "full": {"finetuning_type": "full", "rto_loss": "grpo", "rto_scale": "group"},
    "4 bits": {"quantization_bit": 4, "quantization_method": "bnb", "oracle_model_quantization_bit": 4},
    "LoRA+": {"loraplus_lr_ratio": 16.0},
    "conversations": {"dataset": "plain", "val_size": 8, "eval_strategy": "steps", "eval_steps": 2,
                      "per_device_eval_batch_size": 4},
    "rising": {**GRPO, "max_steps": 25, "per_device_train_batch_size": 32, "rto_samples": 8, "learning_rate": 0.03,
               "rto_max_new_tokens": 4, "lr_scheduler_type": "constant", "save_strategy": "no"},
    "whole": {"max_steps": 5, "save_steps": 3, "max_samples": 4},  # two steps are an epoch
}  # fmt: skip


def save_data(folder):
    """Save pairs and conversations with an expected answer: a text that responses sometimes contain."""
    rows = [{**row, "expected": "e"} for row in tiny.pairs(24)]
    rows[5]["expected"] = None  # left out
    rows.append(rows[0])  # used once
    plain = [{"conversations": [*row["conversations"], row["chosen"]], "expected": row["expected"]} for row in rows]
    folder.mkdir(parents=True)
    columns = {"messages": "conversations"}
    info = {}
    for name, content, more in (
        ("pairs", rows, {"ranking": True, "columns": {**columns, "chosen": "chosen", "rejected": "rejected"}}),
        ("plain", plain, {"columns": columns}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))
        info[name] = {"file_name": f"{name}.json", "formatting": "sharegpt", **more}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return save_data(tmp_path_factory.mktemp("data") / "rows")


def recipe_of(world, data, output, **changes):
    keys = {
        "stage": "rto", "dataset": "pairs", "dataset_dir": str(data), "judge": "contains", "max_steps": 2,
        "expected_column": "expected", "per_device_train_batch_size": 8, "rto_samples": 4, "rto_max_new_tokens": 8,
        "token_scores_dir": None,
    }  # fmt: skip
    return sepo_recipe(world, output, **{**keys, **changes})


@pytest.fixture(scope="module")
def runs(world, data, tmp_path_factory):
    """Return a directory with a run of every way, of one that continues, and of one that resumed."""
    folder = tmp_path_factory.mktemp("rto")
    recipes = [recipe_of(world, data, folder / way, **keys) for way, keys in WAYS.items()]
    continued = {"adapter_name_or_path": str(folder / "LoRA+"), "create_new_adapter": False}
    resumed = {**WAYS["whole"], "resume_from_checkpoint": str(folder / "whole" / "checkpoint-3")}
    recipes.append(recipe_of(world, data, folder / "continued", **continued))
    recipes.append(recipe_of(world, data, folder / "resumed", **resumed))
    (folder / "recipes.json").write_text(json.dumps(recipes))
    run([sys.executable, WORKER, folder / "recipes.json"], cwd=folder, env=environment())
    return folder


def steps(output):
    return [entry for entry in logged(output) if "reward" in entry]


@pytest.mark.host
def test_the_reward_rises(runs):
    rewards = [entry["reward"] for entry in steps(runs / "rising")]
    first, last = sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5
    assert last > first + 0.25
    assert all(entry["kl"] == 0 for entry in steps(runs / "rising") if "kl" in entry)  # no reference runs


@pytest.mark.host
@pytest.mark.parametrize("way", ["oracle", "entropy", "full", "4 bits", "LoRA+", "conversations"])
def test_every_way_logs_its_rewards_and_saves(runs, way):
    entries = steps(runs / way)
    assert len([entry for entry in logged(runs / way) if "loss" in entry]) == 2
    assert len(entries) == (1 if way == "entropy" else 2)  # its second step is on the responses of the first
    for entry in entries:
        if "loss" in entry:
            assert entry["grad_norm"] > 0
            assert {"rewards/judge/mean", "reward_std", "rto/dense_return", "kl", "entropy"} <= entry.keys()
    settings = json.loads((runs / way / "sepo_settings.json").read_text())
    assert (settings["stage"], settings["hyperparameters"]["samples"]) == ("rto", 4)
    assert (runs / way / "sepo_log.jsonl").is_file()
    assert way == "full" or adapter(runs / way)


@pytest.mark.host
def test_selected_tokens_are_logged(runs):
    for way, ratio in (("oracle", 0.3), ("entropy", 0.5)):
        for entry in steps(runs / way):
            assert 0 < entry["select/ratio"] <= ratio + 0.2
            assert entry["select/tokens"] >= 1
    assert "select/ratio" not in steps(runs / "full")[0]


@pytest.mark.host
def test_the_oracles_term_is_clipped(runs):
    assert all(abs(entry["rto/oracle_reward"]) <= 0.05 for entry in steps(runs / "oracle"))


@pytest.mark.host
def test_evaluations_sample_as_well(runs):
    evaluated = [entry for entry in logged(runs / "conversations") if "eval_reward" in entry]
    assert [entry["step"] for entry in evaluated] == [2]
    assert "eval_rewards/judge/mean" in evaluated[0]


@pytest.mark.host
def test_the_hosts_own_optimizers(runs):
    # LoRA+ has another learning rate for B alone: the same first step of A, a larger one of B.
    plain, plus = (steps(runs / way)[0] for way in ("oracle", "LoRA+"))
    assert plain["learning_rate"] == plus["learning_rate"]
    sizes = {
        way: max(float(value.abs().max()) for name, value in adapter(runs / way).items() if "lora_B" in name)
        for way in ("oracle", "LoRA+")
    }
    assert sizes["LoRA+"] > 4 * sizes["oracle"]


@pytest.mark.host
def test_a_run_that_continues_has_its_adapter_as_reference(runs):
    first, second = (entry["kl"] for entry in steps(runs / "continued"))
    assert first == 0
    assert second != 0
    assert not same_weights(adapter(runs / "continued"), adapter(runs / "LoRA+"))


@pytest.mark.host
def test_a_resumed_run_is_an_undisturbed_one(runs):
    assert same_weights(adapter(runs / "resumed"), adapter(runs / "whole"))
    whole, resumed = (
        [(entry["step"], entry["reward"], entry["loss"]) for entry in steps(runs / way) if "loss" in entry]
        for way in ("whole", "resumed")
    )
    assert resumed == whole
    assert not same_weights(
        adapter(runs / "whole"), {n: torch.zeros_like(v) for n, v in adapter(runs / "whole").items()}
    )


@pytest.mark.host
def test_rows_that_are_left_out_are_counted(runs):
    log = [json.loads(line) for line in (runs / "oracle" / "sepo_log.jsonl").read_text().splitlines()]
    rows = next(entry["rows"] for entry in log if entry["event"] == "rows")["train"]
    assert (rows["given"], rows["used"]) == (25, 23)
    assert {loss["reason"] for loss in rows["losses"]} == {
        "an earlier row has the same prompt", "the column expected has no expected answer"
    }  # fmt: skip


@pytest.mark.host
def test_the_status_of_a_run_has_its_rewards(runs, capsys):
    from sepo.cli import main

    assert main(["status", str(runs / "rising")]) == 0
    text = capsys.readouterr().out
    assert "stage rto" in text
    assert "reward " in text


@pytest.mark.host
def test_the_report_of_a_run_has_curves_of_its_rewards(runs, tmp_path):
    from sepo.cli import main

    assert main(["report", str(runs / "oracle"), "-o", str(tmp_path / "report.html")]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "Mean reward of the sampled responses, by the judge." in text
    assert "Share of the sampled tokens that train the policy." in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rto_samples": 3}, "an optimizer step has 8 responses (per_device_train_batch_size 8 x "
                             "gradient_accumulation_steps 1 x 1 processes), expected a multiple of rto_samples (3)"),
        ({"do_eval": True, "val_size": 8, "per_device_eval_batch_size": 3},
         "a batch of an evaluation has 3 responses (per_device_eval_batch_size 3 x 1 processes), expected a multiple"),
        ({"dataset": "nothing"}, "nothing"),
        ({"oracle_model": "/missing"}, "/missing"),
        ({"dataset": "pairs,plain"}, "dataset 'pairs' is a ranking data set and 'plain' is not"),
        ({"judge": None, "expected_column": None}, "judge is missing"),
        ({"rto_beta9": 1}, "unknown key 'rto_beta9'"),
    ],
)  # fmt: skip
def test_refused_before_a_model_is_loaded(world, data, tmp_path, changes, message):
    from sepo.hosts.llamafactory.recipe import get_train_args

    with pytest.raises(SepoError) as error:
        get_train_args(recipe_of(world, data, tmp_path / "out", **changes))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_fewer_prompts_than_a_step_needs():
    from types import SimpleNamespace

    from sepo.hosts.llamafactory.rto_arguments import check_prompts
    from sepo.recipe.rto import RtoMethod

    arguments = SimpleNamespace(
        do_train=True, per_device_train_batch_size=8, gradient_accumulation_steps=2, world_size=2
    )
    check_prompts(RtoMethod(samples=4), arguments, prompts=8)
    with pytest.raises(SepoError, match=r"there are 7 prompts, but an optimizer step has 8"):
        check_prompts(RtoMethod(samples=4), arguments, prompts=7)


def test_commands_for_pairs_refuse_the_stage(world, data, tmp_path):
    from sepo.hosts.llamafactory.bench.recipe import check_keys, measured_recipe
    from sepo.hosts.llamafactory.recipe import check_recipe, host_keys, refuse_without_scoring

    recipe = recipe_of(world, data, tmp_path / "out")
    with pytest.raises(SepoError, match="stage rto samples its responses"):
        refuse_without_scoring(check_recipe(recipe)[1])
    with pytest.raises(SepoError, match="stage is rto; bench compares preference stages"):
        measured_recipe(recipe, output_dir=str(tmp_path))
    check_keys(recipe, host_keys=host_keys())  # of `sepo eval` and `sepo sample`, for the policy that it trained
