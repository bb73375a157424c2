"""The router loss in training: a mean over pairs, the same for any split into batches, parts and processes."""

import subprocess
import sys

import pytest
import torch
import transformers

from sepo.errors import SepoError
from sepo.objectives import resolve_method
from sepo.training import PairCollator, PreferenceTrainer, preference_step
from sepo.training.batch_parts import Parts
from sepo.training.split_backward import SplitsBatches
from tests.support.experts import KINDS, save_experts
from tests.support.recipes import environment, python_path
from tests.support.steps import running
from tests.support.trainers import ROWS, arguments, rows_of

STAGES = ("sepo", "selective_dpo", "dpo_reg", "minor_dpo")
WEIGHT = 0.5
"""Large, so that a wrong router loss changes the weights noticeably."""
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
"""The models compute norms and router probabilities in float32, whatever their dtype."""


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    for kind in KINDS:
        save_experts(folder / kind, kind)
    return folder


def load(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    model.config._experts_implementation = "eager"  # the default is a kernel for narrower types
    return model


def own_losses(model, batch):
    """Return the model's own loss of each pair, from its two padded rows alone."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    pairs = len(batch["labels"]) // 2
    losses = []
    for pair in range(pairs):
        two = {name: part[[pair, pairs + pair]] for name, part in inputs.items()}
        losses.append(model(**two, output_router_logits=True).aux_loss)
    return torch.stack(losses)


def gradients_of(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("share", [True, False], ids=["shared", "padded"])
@pytest.mark.parametrize("objective", STAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_step_adds_the_mean_of_the_pairs_own_losses(experts, kind, objective, share):
    model, reference = load(experts / kind), load(experts / "Mixtral")
    method = resolve_method(objective)
    batch = PairCollator(method)(ROWS)
    run = {"method": method, "share_prompts": share, "reference": running(reference)}
    plain = preference_step(model, batch, **run)
    output = preference_step(model, batch, router_loss_weight=WEIGHT, **run)
    own = own_losses(model, batch)
    assert output.metrics["objective/router_loss"] == pytest.approx(own.mean().item(), rel=1e-5)
    expected = plain.loss + WEIGHT * own.mean()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert set(output.metrics) - set(plain.metrics) == {"objective/router_loss"}
    found, target = gradients_of(model, output.loss), gradients_of(model, expected)
    largest = max(gradient.abs().max().item() for gradient in target.values())
    torch.testing.assert_close(found, target, rtol=1e-4, atol=1e-4 * largest)


@pytest.mark.parametrize("share", [True, False], ids=["shared", "padded"])
def test_parts_and_pairs_that_do_not_count(experts, share):
    """A batch of three counted pairs and one that fills it, whole and in parts, equals the batch of three."""
    model, method = load(experts / "Qwen3Moe"), resolve_method("sepo")
    run = {"method": method, "share_prompts": share, "router_loss_weight": WEIGHT}
    whole = preference_step(model, PairCollator(method)(ROWS[:3]), **run)
    expected = gradients_of(model, whole.loss)
    for parts in (None, Parts(20)):
        output = preference_step(model, PairCollator(method)(ROWS), **run, parts=parts, counted=3)
        assert output.metrics == pytest.approx(whole.metrics, rel=1e-5)
        assert output.loss.item() == pytest.approx(whole.loss.item(), rel=1e-6)
        torch.testing.assert_close(gradients_of(model, output.loss), expected, **TOLERANCE)


def trained(experts, directory, kind, *, objective="sepo", share=True, batch_tokens=None, weight=WEIGHT, **overrides):
    class Trainer(PreferenceTrainer):
        def shares_prompts(self):
            return share

    trainer = Trainer(
        model=load(experts / kind),
        method=resolve_method(objective),
        args=arguments(directory, **{"max_steps": 2, **overrides}),
        train_dataset=ROWS,
        eval_dataset=ROWS,
        batch_tokens=batch_tokens,
        router_aux_loss_coef=weight,
    )
    trainer.train()
    return trainer


def weights(trainer):
    return {name: value.detach() for name, value in trainer.model.named_parameters()}


@pytest.fixture(scope="module")
def whole_batches(experts, tmp_path_factory):
    """A run of two steps with one batch of four pairs each, by kind."""
    return {kind: trained(experts, tmp_path_factory.mktemp("whole"), kind) for kind in KINDS}


SPLITS = {
    "4 x 1": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    "3 x 2": {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2},
    "parts": {"batch_tokens": 20},
    "padded": {"share": False},
    "4 x 1, padded": {"share": False, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    "checkpointed": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", KINDS)
def test_any_split_of_the_pairs_trains_the_same_weights(experts, whole_batches, tmp_path, kind, split):
    whole = whole_batches[kind]
    parts = trained(experts, tmp_path, kind, **SPLITS[split])
    torch.testing.assert_close(weights(parts), weights(whole), **TOLERANCE)
    result, target = ([entry for entry in t.state.log_history if "loss" in entry] for t in (parts, whole))
    for name in ("loss", "objective/router_loss", "rewards/margins"):
        assert [entry[name] for entry in result] == pytest.approx([entry[name] for entry in target], rel=1e-5), name
    assert target[0]["objective/router_loss"] != pytest.approx(target[1]["objective/router_loss"], rel=1e-5)


def test_the_weight_lowers_the_router_loss(experts, tmp_path):
    """Against a run of the same steps without it."""
    settings = {"objective": "simpo", "max_steps": 8, "num_train_epochs": 8, "learning_rate": 0.1}
    losses = []
    for weight in (2.0, 0.0):
        trainer = trained(experts, tmp_path, "Mixtral", weight=weight, **settings)
        assert ("objective/router_loss" in trainer.state.log_history[0]) is bool(weight)
        with torch.no_grad():
            losses.append(own_losses(trainer.model, PairCollator(trainer.method)(ROWS)).mean().item())
    # 2 experts per token: 2 if all experts are used alike
    assert losses[0] - 2 < 0.5 * (losses[1] - 2), losses


def test_evaluations_have_it_in_loss_and_metrics(experts, tmp_path):
    trainer = trained(experts, tmp_path, "Qwen3Moe", per_device_eval_batch_size=3)
    metrics = trainer.evaluate()
    batch = PairCollator(trainer.method)(ROWS)
    with torch.no_grad():
        own = own_losses(trainer.model, batch).mean().item()
        plain = preference_step(trainer.model, batch, method=trainer.method).loss.item()
    assert metrics["eval_objective/router_loss"] == pytest.approx(own, rel=1e-5)
    assert metrics["eval_loss"] == pytest.approx(plain + WEIGHT * own, rel=1e-5)


RANK = """
import os
import torch
from pathlib import Path
from tests.support.trainers import ROWS, rows_of
from tests.training.test_router import KINDS, trained
experts, directory = Path({experts!r}), Path({directory!r})
for kind in KINDS:
    for name, more in {{"shared": {{}}, "padded": {{"share": False}}}}.items():
        sizes = {{"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}}
        trainer = trained(experts, directory, kind, **sizes, **more)
        evaluated = trainer.evaluate(rows_of(5, seed=1))
        if trainer.is_world_process_zero():
            logged = [entry for entry in trainer.state.log_history if "loss" in entry]
            found = {{"weights": dict(trainer.model.named_parameters()), "logged": logged, "evaluated": evaluated}}
            torch.save(found, directory / f"{{kind}}-{{name}}.pt")
os._exit(0)  # see test_trainer
"""


@pytest.fixture(scope="module")
def two_processes(experts, tmp_path_factory):
    directory = tmp_path_factory.mktemp("two")
    script = directory / "rank.py"
    script.write_text(RANK.format(experts=str(experts), directory=str(directory)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
    env = environment(PYTHONPATH=python_path())
    done = subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.mark.parametrize("way", ["shared", "padded"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_equal_one(two_processes, whole_batches, kind, way):
    """DDP with two pairs per rank; an evaluation whose last batches are filled with pairs that were counted before."""
    whole = whole_batches[kind]
    found = torch.load(two_processes / f"{kind}-{way}.pt", weights_only=False)
    two = {name: value.detach() for name, value in found["weights"].items()}
    torch.testing.assert_close(two, weights(whole), **TOLERANCE)
    expected = [entry for entry in whole.state.log_history if "loss" in entry]
    for name in ("loss", "objective/router_loss"):
        assert [entry[name] for entry in found["logged"]] == pytest.approx([e[name] for e in expected], rel=1e-5), name
    evaluated = whole.evaluate(rows_of(5, seed=1))
    for name in ("eval_loss", "eval_objective/router_loss"):
        assert found["evaluated"][name] == pytest.approx(evaluated[name], rel=1e-5), name


def test_a_trained_model_can_generate(experts, tmp_path):
    """Hosts set output_router_logits for this loss, with which transformers' models do not generate."""
    model = load(experts / "Mixtral")
    model.config.output_router_logits = True
    settings = {"method": resolve_method("sepo"), "args": arguments(tmp_path), "train_dataset": ROWS}
    assert PreferenceTrainer(model=model, **settings).model.config.output_router_logits is True
    trainer = PreferenceTrainer(model=model, router_aux_loss_coef=0.1, **settings)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    saved = load(tmp_path / "saved").eval()
    assert saved.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False).shape == (1, 6)


def test_runs_that_cannot_have_it_are_refused(world, experts, tmp_path, monkeypatch):
    settings = {"method": resolve_method("sepo"), "args": arguments(tmp_path), "train_dataset": ROWS}
    dense = transformers.AutoModelForCausalLM.from_pretrained(world / "policy")
    with pytest.raises(SepoError, match=r"type llama has no experts.*PreferenceTrainer router_aux_loss_coef"):
        PreferenceTrainer(model=dense, router_aux_loss_coef=0.1, **settings)
    assert PreferenceTrainer(model=dense, router_aux_loss_coef=0.0, **settings)
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(SepoError, match=r"router loss is .*, expected a finite number of at least 0"):
            PreferenceTrainer(model=load(experts / "Mixtral"), router_aux_loss_coef=wrong, **settings)
    monkeypatch.setattr(SplitsBatches, "shards_rows", lambda self: True)
    with pytest.raises(SepoError, match="no process has the router logits of a whole pair"):
        PreferenceTrainer(model=load(experts / "Mixtral"), router_aux_loss_coef=0.1, **settings)
