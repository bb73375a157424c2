"""PreferenceTrainer: losses equal the step's for any split of pairs; metrics, references and errors."""

import contextlib
import copy
import functools
import math
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaForCausalLM, TrainingArguments

from sepo.errors import SepoError
from sepo.objectives import resolve_method
from sepo.training import PairCollator, PreferenceTrainer, preference_step
from sepo.training.means import Means
from tests.support.recipes import environment, python_path
from tests.support.trainers import (
    GROUPED,
    LIVE,
    LOGGED,
    ROWS,
    SUM,
    WEIGHED,
    arguments,
    load,
    rows_of,
    single_tokens,
    unweighed,
)

OBJECTIVES = ("sepo", "selective_dpo", "dpo_reg", "minor_dpo", "confpo", "tgdpo", "sum")


def method_of(objective):
    return LIVE if objective == "live" else resolve_method(SUM if objective == "sum" else objective)


def trained(world, directory, objective, rows=ROWS, ref_model=None, **overrides):
    method = method_of(objective)
    trainer = PreferenceTrainer(
        model=load(world),
        ref_model=ref_model,
        method=method,
        args=arguments(directory, **overrides),
        train_dataset=rows,
    )
    trainer.train()
    return trainer


def by_hand(model, reference, objective, rows=ROWS):
    method = method_of(objective)
    return preference_step(
        model, PairCollator(method)(rows), method=method, reference=lambda: contextlib.nullcontext(reference)
    )


def weights(trainer):
    return {name: value.detach() for name, value in trainer.model.named_parameters()}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_metrics_and_weights_equal_those_of_the_step(world, tmp_path, objective):
    trainer = trained(world, tmp_path, objective, max_steps=2, num_train_epochs=2)
    model, reference = load(world), load(world)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 2
    for entry in logged:
        output = by_hand(model, reference, objective)
        assert entry["loss"] == pytest.approx(output.loss.item(), rel=1e-6, abs=LOGGED)
        assert {name: entry[name] for name in output.metrics} == pytest.approx(output.metrics, rel=1e-4, abs=1e-6)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    torch.testing.assert_close(weights(trainer), dict(model.named_parameters()), rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def whole_batches(world, tmp_path_factory):
    """Runs of two steps with one batch each, by objective."""

    @functools.cache
    def run(objective):
        ref_model = load(world, "base") if objective == "live" else None
        return trained(world, tmp_path_factory.mktemp("whole"), objective, ref_model=ref_model, max_steps=2)

    return run


@pytest.mark.parametrize("objective", ["sepo", "minor_dpo", "dpo_reg", "live", "confpo", "tgdpo", "sum"])
@pytest.mark.parametrize(("batch", "accumulation"), [(1, 4), (2, 2), (3, 2)])
def test_accumulated_batches_equal_one_batch(world, whole_batches, tmp_path, objective, batch, accumulation):
    """3 x 2 has device batches of three pairs and of one: the mean is over pairs, not over batches.

    Live selection uses another model as reference: with the initial policy all scores are ties, broken by rounding.
    """
    split = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": 2}
    ref_model = load(world, "base") if objective == "live" else None
    whole = whole_batches(objective)
    parts = trained(world, tmp_path, objective, ref_model=ref_model, **split)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-9, atol=1e-9)
    result, target = ([e for e in t.state.log_history if "loss" in e] for t in (parts, whole))
    for name in ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen"):
        assert [e[name] for e in result] == pytest.approx([e[name] for e in target], rel=1e-5), name


def test_evaluation_is_the_mean_over_pairs(world, tmp_path):
    """Four pairs in batches of three and one, several named data sets; the metrics are returned and logged."""
    trainer = PreferenceTrainer(
        model=load(world),
        method=resolve_method("minor_dpo"),
        args=arguments(tmp_path),
        ref_model=load(world, "base"),
        eval_dataset={"near": ROWS, "far": Dataset.from_list(rows_of(2, seed=1))},
    )
    metrics = trainer.evaluate()
    for name, rows in (("near", ROWS), ("far", rows_of(2, seed=1))):
        expected = by_hand(load(world), load(world, "base"), "minor_dpo", rows)
        assert metrics[f"eval_{name}_loss"] == pytest.approx(expected.loss.item(), rel=1e-6)
        for metric in ("rewards/margins", "rewards/accuracies", "objective/rejected_clamped", "logps/rejected"):
            assert metrics[f"eval_{name}_{metric}"] == pytest.approx(expected.metrics[metric], rel=1e-5), metric
    logged = {key for entry in trainer.state.log_history for key in entry}
    assert {"eval_near_rewards/margins", "eval_far_kl/chosen"} <= logged


def test_evaluation_during_training_does_not_change_training_metrics(world, tmp_path):
    trainer = PreferenceTrainer(
        model=load(world),
        method=resolve_method("sepo"),
        args=arguments(tmp_path, eval_strategy="steps", eval_steps=1, max_steps=2, remove_unused_columns=True),
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=ROWS[:1],
    )
    trainer.train()
    history = trainer.state.log_history
    training = [entry for entry in history if "loss" in entry]
    evaluations = [entry for entry in history if "eval_loss" in entry]
    assert len(training) == len(evaluations) == 2
    assert all("eval_rewards/margins" not in entry and "rewards/margins" in entry for entry in training)
    assert training[0]["rewards/margins"] == pytest.approx(
        by_hand(load(world), None, "sepo").metrics["rewards/margins"], rel=1e-5
    )
    assert all("rewards/margins" not in entry and "eval_rewards/margins" in entry for entry in evaluations)


def test_the_reference_stays_the_initial_policy(world, tmp_path):
    """Full weights and an adapter trained by SFT: after a step the rewards are relative to the initial policy."""
    full = load(world)
    torch.manual_seed(0)
    adapted = get_peft_model(load(world), LoraConfig(r=2, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    for model in (full, adapted):
        start = copy.deepcopy(model)
        trainer = PreferenceTrainer(
            model=model, method=resolve_method("dpo"), args=arguments(tmp_path), train_dataset=ROWS, eval_dataset=ROWS
        )
        trainer.train()
        assert trainer.state.log_history[0]["rewards/margins"] == 0.0
        expected = by_hand(model.eval(), start.eval(), "dpo").metrics["rewards/margins"]
        assert expected != 0.0
        assert trainer.evaluate()["eval_rewards/margins"] == pytest.approx(expected, rel=1e-5)


def test_the_reference_runs_in_the_policys_precision(world, tmp_path):
    """Under bfloat16 autocast, another model with the same weights and the initial policy give rewards of exactly zero
    at the first step and equal rewards after it."""
    seen = []
    for reference in (None, LlamaForCausalLM.from_pretrained(world / "policy", dtype=torch.float32)):
        trainer = PreferenceTrainer(
            model=LlamaForCausalLM.from_pretrained(world / "policy", dtype=torch.float32),
            method=resolve_method("minor_dpo"),
            args=arguments(tmp_path, bf16=True, max_steps=2),
            ref_model=reference,
            train_dataset=ROWS,
        )
        trainer.train()
        seen.append([entry["rewards/chosen"] for entry in trainer.state.log_history if "loss" in entry])
    assert seen[0][0] == 0.0
    assert seen[0][1] != 0.0
    assert seen[0] == seen[1]


def test_save_load_and_resume(world, tmp_path):
    """A saved policy is a standard checkpoint; a resumed run ends with the weights of an uninterrupted one."""
    whole = trained(world, tmp_path / "whole", "minor_dpo", max_steps=2)
    trained(world, tmp_path / "parts", "minor_dpo", save_strategy="steps", save_steps=1)
    resumed = PreferenceTrainer(
        model=load(world),
        method=resolve_method("minor_dpo"),
        args=arguments(tmp_path / "parts", max_steps=2),
        train_dataset=ROWS,
    )
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 2
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=1e-9, atol=1e-9)
    resumed.save_model(tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float64)
    torch.testing.assert_close(dict(loaded.named_parameters()), weights(resumed), rtol=0, atol=0)


def without(*names):
    return [{name: value for name, value in row.items() if name not in names} for row in ROWS]


@pytest.mark.parametrize(
    ("objective", "rows", "message"),
    [
        (
            "sepo",
            without("rejected_scores"),
            "sepo with the scorer 'oracle' selects by .* no rejected_scores.*score_rows",
        ),
        (
            "dpo_reg",
            without("chosen_token_rewards", "chosen_scores"),
            "regularizes with .* no chosen_token_rewards.*reward_rows",
        ),
        ("minor_dpo", without("prompt_ids"), "no prompt_ids.*encode_pairs"),
        ("minor_dpo", [{**ROWS[0], "chosen_ids": []}], "'chosen_ids' of a row is empty"),
        ("sepo", [{**ROWS[0], "chosen_scores": [0.5] * 99}], "99 numbers for a response of"),
        ("minor_dpo", [], "has no rows"),
    ],
)
def test_rows_without_needed_columns_raise_before_training(world, tmp_path, objective, rows, message):
    for role in ("train_dataset", "eval_dataset"):
        with pytest.raises(SepoError, match=message):
            PreferenceTrainer(
                model=load(world), method=resolve_method(objective), args=arguments(tmp_path), **{role: rows}
            )


def test_unsupported_references_raise(world, tmp_path, monkeypatch):
    model, method = load(world), resolve_method("selective_dpo")
    settings = {"model": model, "args": arguments(tmp_path), "train_dataset": ROWS}
    with pytest.raises(SepoError, match="ref_model is the policy itself"):
        PreferenceTrainer(method=method, ref_model=model, **settings)
    monkeypatch.setattr("sepo.training.trainer.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(SepoError, match=r"does not support under ZeRO-3.*a method without a reference"):
        PreferenceTrainer(method=method, **settings)
    assert PreferenceTrainer(method=resolve_method("sepo"), **settings).starting_policy is None


def test_arguments_without_effect_raise(world, tmp_path, monkeypatch):
    settings = {"model": load(world), "method": resolve_method("sepo"), "train_dataset": ROWS}
    with pytest.raises(SepoError, match="compute_loss_func"):
        PreferenceTrainer(args=arguments(tmp_path), compute_loss_func=len, **settings)
    with pytest.raises(SepoError, match=r"label_smoothing_factor is 0.1"):
        PreferenceTrainer(args=arguments(tmp_path, label_smoothing_factor=0.1), **settings)
    with pytest.raises(SepoError, match="grouped by length"):
        PreferenceTrainer(args=arguments(tmp_path, **GROUPED), **settings)
    dispatching = arguments(tmp_path, accelerator_config={"dispatch_batches": True})
    assert PreferenceTrainer(args=dispatching, **settings)
    with monkeypatch.context() as two:
        two.setattr(Accelerator, "num_processes", 2)
        with pytest.raises(SepoError, match=r"first of 2 processes.*tears pairs apart"):
            PreferenceTrainer(args=dispatching, **settings)
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(SepoError, match=r"2 GPUs in one process.*torchrun"):
        PreferenceTrainer(args=arguments(tmp_path), **settings)


def test_means_are_totals_over_counts():
    class OneProcess:
        device = "cpu"

        @staticmethod
        def reduce(values, how):
            assert how == "sum"
            return values

    means = Means()
    assert means.reduced(OneProcess, batch_pairs=4) == {}
    means.add({"a": (3.0, 3.0), "select/tokens": (30.0, 3.0)})
    means.add({"a": (5.0, 1.0), "select/tokens": (6.0, 1.0)})
    assert means.reduced(OneProcess, batch_pairs=4) == {"a": 2.0, "select/tokens": 36.0}


@pytest.mark.parametrize("accumulated", [1, 2])
def test_batch_tokens_change_memory_and_nothing_else(world, tmp_path, accumulated):
    """Parts with separate backward passes, also with accumulation: weights and log equal those of whole batches."""
    split, whole = (
        PreferenceTrainer(
            model=load(world),
            ref_model=load(world, "base"),
            method=LIVE,
            args=arguments(tmp_path, max_steps=2, gradient_accumulation_steps=accumulated),
            train_dataset=rows_of(8),
            batch_tokens=budget,
        )
        for budget in (20, None)
    )
    for trainer in (split, whole):
        trainer.train()
    torch.testing.assert_close(weights(split), weights(whole), rtol=1e-9, atol=1e-9)
    for result, target in zip(split.state.log_history[:2], whole.state.log_history[:2], strict=True):
        assert result == pytest.approx(target, rel=1e-4)


RANK = """
import os
import torch
from pathlib import Path
from tests.support import tiny
from tests.support.trainers import LIVE, ROWS, WEIGHED, arguments, load, rows_of, single_tokens, unweighed
from sepo.objectives import resolve_method
from sepo.training import PreferenceTrainer
tiny.LlamaRMSNorm.forward = tiny.exact_norm
class InOrder(PreferenceTrainer):
    def _get_train_sampler(self, *args):
        return torch.utils.data.SequentialSampler(self.train_dataset)
world = Path({world!r})
for batch_tokens in (None, 20):
    directory = {directory!r} + f"/{{batch_tokens}}"
    trainer = PreferenceTrainer(
        model=load(world), ref_model=load(world, "base"), method=LIVE, train_dataset=ROWS, eval_dataset=ROWS,
        args=arguments(directory, per_device_train_batch_size=2, per_device_eval_batch_size=2, max_steps=2),
        batch_tokens=batch_tokens,
    )
    trainer.train()
    evaluations = [trainer.evaluate(rows_of(count, seed=1)) for count in {counts}]
    if trainer.is_world_process_zero():
        trainer.save_model()
        torch.save(evaluations, directory + "/evaluation.pt")
for name, method, rows in (
    ("empty", resolve_method("confpo"), single_tokens(ROWS)),
    ("half empty", resolve_method("confpo"), [*single_tokens(ROWS[:2]), *ROWS[2:]]),
    ("unweighed", WEIGHED, unweighed(ROWS)),
    ("half unweighed", WEIGHED, [*unweighed(ROWS[:2]), *ROWS[2:]]),
):
    directory = {directory!r} + f"/{{name}}"
    trainer = InOrder(
        model=load(world), ref_model=load(world, "base"), method=method, train_dataset=rows,
        args=arguments(directory, per_device_train_batch_size=2, max_steps=2),
    )
    trainer.train()
    if trainer.is_world_process_zero():
        trainer.save_model()
        torch.save(trainer.state.log_history, directory + "/log.pt")
# An interpreter that ends right after a collective aborts if gloo's thread is still releasing the collective's tensors,
# for which it needs the GIL. Exit without ending the interpreter.
os._exit(0)
"""
COUNTS = (4, 5, 1, 7)
"""Pairs of evaluations in batches of two per process: full, and with one, three and one pairs that repeat others."""


def values_of(metrics):
    return {name: value for name, value in metrics.items() if "runtime" not in name and "per_second" not in name}


@pytest.fixture(scope="module")
def two_processes(world, tmp_path_factory):
    """A directory of runs of two processes, by ``batch_tokens``, from one start of the processes."""
    directory = tmp_path_factory.mktemp("two")
    values = {"world": str(world), "directory": str(directory), "counts": COUNTS}
    script = directory / "rank.py"
    script.write_text(RANK.format(**values))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
    env = environment(PYTHONPATH=python_path())
    done = subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.mark.parametrize("batch_tokens", [None, 20])
def test_two_processes_equal_one(world, two_processes, tmp_path, batch_tokens):
    """DDP with two pairs per rank and live selection: weights and evaluation equal those of one process with four.

    Evaluations with a remainder: a rank's last batch is filled with pairs that were counted before, or has no other.
    """
    trainer = PreferenceTrainer(
        model=load(world),
        ref_model=load(world, "base"),
        method=LIVE,
        args=arguments(tmp_path / "one", max_steps=2, per_device_eval_batch_size=2),
        train_dataset=ROWS,
    )
    trainer.train()
    two = LlamaForCausalLM.from_pretrained(two_processes / str(batch_tokens), dtype=torch.float64)
    torch.testing.assert_close(dict(two.named_parameters()), weights(trainer), rtol=1e-9, atol=1e-9)
    found = torch.load(two_processes / str(batch_tokens) / "evaluation.pt")
    for count, metrics in zip(COUNTS, found, strict=True):
        expected = values_of(trainer.evaluate(rows_of(count, seed=1)))
        assert values_of(metrics) == pytest.approx(expected, rel=1e-5, abs=1e-7), count


@pytest.mark.parametrize("name", ["empty", "half empty", "unweighed", "half unweighed"])
def test_processes_without_a_token_that_counts(world, two_processes, tmp_path, name):
    """Pairs without selected tokens, and tokens without weight, in the pairs of all processes or of the first."""
    kept = ROWS[2:] if name.startswith("half") else []
    change = single_tokens if name.endswith("empty") else unweighed
    trainer = PreferenceTrainer(
        model=load(world),
        ref_model=load(world, "base"),
        method=resolve_method("confpo") if name.endswith("empty") else WEIGHED,
        args=arguments(tmp_path, max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2),
        train_dataset=[*change(ROWS[: 4 - len(kept)]), *kept],
    )
    trainer.train()
    two = LlamaForCausalLM.from_pretrained(two_processes / name, dtype=torch.float64)
    torch.testing.assert_close(dict(two.named_parameters()), weights(trainer), rtol=1e-9, atol=1e-9)
    moved = any(not torch.equal(a, b) for a, b in zip(two.parameters(), load(world).parameters(), strict=True))
    assert moved == bool(kept)
    for entry, expected in zip(torch.load(two_processes / name / "log.pt"), trainer.state.log_history, strict=True):
        assert all(math.isfinite(value) for value in entry.values())
        assert values_of(entry) == pytest.approx(values_of(expected), rel=1e-5, abs=1e-7)


def test_importing_the_step_needs_no_transformers():
    code = (
        "import sys, sepo.training as t; assert 'transformers' not in sys.modules\n"
        "assert t.PreferenceTrainer.__name__ == 'PreferenceTrainer' and 'transformers' in sys.modules\n"
        "try:\n    t.Nothing\nexcept AttributeError as error:\n    assert 'Nothing' in str(error)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
