"""The trainer's step on scripted responses: equality with TRL's GRPO, groups, selection, old log-probabilities."""

import contextlib
import json
import math
import os

import pytest
import torch

from sepo.forward.sequences import OracleScorer, ScoringModel
from sepo.online.grpo_step import ADVANTAGES, SELECTION
from sepo.online.loss import clipped_loss
from sepo.recipe.rto import RtoMethod, RtoSelection
from tests.support import online
from tests.support.online import GRPO, PROMPTS, SAMPLES, Ours, Scripted, model_of, reward, script, trainer_of
from tests.support.recipes import BIN, adapter, environment, python_path, run

pytestmark = pytest.mark.usefixtures("exact_norms")


def steps(trainer):
    """Return the losses and the gradients of the device batches of one optimizer step."""
    rows = [trainer.train_dataset[index] for index in (0, 1) for _ in range(SAMPLES)]
    found = []
    for _ in range(2):
        torch.manual_seed(7)
        inputs = trainer._prepare_inputs(rows)
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
        gradients = {
            name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()
            if parameter.grad is not None
        }  # fmt: skip
        found.append((loss.detach(), gradients))
    return found


def assert_same(found, expected):
    for (loss, gradients), (other_loss, others) in zip(found, expected, strict=True):
        torch.testing.assert_close(loss, other_loss)
        assert gradients.keys() == others.keys()
        assert any(value.any() for value in gradients.values())
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, others[name], rtol=1e-6, atol=1e-7 * float(gradient.abs().max()))


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_without_token_rewards_the_loss_is_that_of_trl(tmp_path, loss_type, scale):
    config = {"loss_type": loss_type, "scale_rewards": scale, "temperature": 0.7}
    rto = RtoMethod(**GRPO, loss_type=loss_type, scale=scale, temperature=0.7)
    assert_same(steps(trainer_of(Ours, tmp_path, rto=rto, **config)), steps(trainer_of(Scripted, tmp_path, **config)))


def test_the_kl_term_and_a_second_iteration_are_those_of_trl(tmp_path):
    found = []
    for kind, beta in ((Ours, 0.0), (Scripted, 0.2)):
        rto = RtoMethod(**GRPO, kl_beta=0.2, iterations=2) if kind is Ours else None
        trainer = trainer_of(kind, tmp_path, model=model_of(adapter=True), rto=rto, beta=beta, num_iterations=2)
        first = steps(trainer)
        with torch.no_grad():  # so that the samples are those of another policy
            for name, parameter in trainer.model.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(-3.0)
        found.append([*first, *steps(trainer)])
        clipped = trainer._metrics["train"]["clip_ratio/region_mean"]
        assert clipped[:2] == [0.0, 0.0]
        assert min(clipped[2:]) > 0
        found[-1].append((torch.tensor(clipped[2:]).mean(), found[-1][-1][1]))
    assert_same(*found)


def test_token_rewards_change_the_advantages_of_single_tokens(tmp_path):
    policy, oracle, base = model_of(adapter=True), model_of(), model_of()
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    frozen = [ScoringModel(model.eval(), contextlib.nullcontext) for model in (oracle, base)]
    scorer = OracleScorer(oracle=frozen[0], base=frozen[1], batch_tokens=64)
    rto = RtoMethod(**{**GRPO, "beta1": 0.5, "beta2": 0.25}, temperature=0.8, scale="none")
    trainer = trainer_of(Ours, tmp_path, model=policy, rto=rto, oracle=scorer, temperature=0.8)
    rows = [trainer.train_dataset[index] for index in (0, 1) for _ in range(SAMPLES)]
    batch = trainer._generate_and_score_completions(rows)

    def logps(model, prompt, response, temperature=1.0):
        ids = torch.tensor([[*prompt, *response]])
        with torch.no_grad():
            every = torch.log_softmax(model(ids).logits.double()[0] / temperature, -1)
        places = range(len(prompt) - 1, len(prompt) + len(response) - 1)
        return [float(every[place, token]) for place, token in zip(places, response, strict=True)]

    for group, prompt in enumerate(PROMPTS[:2]):
        responses = [script(prompt, number) for number in range(SAMPLES)]
        judged = reward(completion_ids=responses)
        ahead = []
        for response in responses:
            with policy.disable_adapter():
                reference = logps(policy, prompt, response, 0.8)
            parts = [
                logps(oracle, prompt, response),
                logps(base, prompt, response),
                logps(policy, prompt, response, 0.8),
            ]
            dense = [0.5 * (o - b) - 0.25 * (p - r) for o, b, p, r in zip(*parts, reference, strict=True)]
            ahead.append([sum(dense[t:]) for t in range(len(dense))])
        for number in range(SAMPLES):
            expected = []
            for t, value in enumerate(ahead[number]):
                alive = [other[t] for other in ahead if t < len(other)]
                mean = sum(judged) / SAMPLES + sum(alive) / len(alive)
                expected.append(judged[number] + value - mean)
            row = batch[ADVANTAGES][group * SAMPLES + number]
            torch.testing.assert_close(
                row[: len(expected)], torch.tensor(expected), rtol=1e-4, atol=1e-5, check_dtype=False
            )
            assert not row[len(expected) :].any()
    logged = trainer._metrics["train"]
    assert all(math.isfinite(logged[name][-1]) for name in ("rto/oracle_reward", "rto/dense_return", "kl", "entropy"))


@pytest.mark.parametrize("scorer", ["entropy", "confidence"])
def test_unselected_tokens_have_no_gradient(tmp_path, scorer, monkeypatch):
    rto = RtoMethod(**GRPO, select=RtoSelection(scorer, 0.34), scale="none")
    trainer = trainer_of(Ours, tmp_path, rto=rto, gradient_accumulation_steps=1, per_device_train_batch_size=8)
    rows = [trainer.train_dataset[index] for index in (0, 1) for _ in range(SAMPLES)]
    inputs = trainer._prepare_inputs(rows)
    selection, mask = inputs[SELECTION], inputs["completion_mask"].bool()
    counts = [max(1, math.floor(0.34 * n + 1e-9)) for n in mask.sum(-1).tolist()]
    assert selection.sum(-1).tolist() == counts
    assert trainer._metrics["train"]["select/tokens"][-1] == pytest.approx(sum(counts) / len(counts))
    assert trainer._metrics["train"]["select/ratio"][-1] == pytest.approx(sum(counts) / int(mask.sum()))
    logps = []

    def watched(policy, *args, **kwargs):
        policy.retain_grad()
        logps.append(policy)
        return clipped_loss(policy, *args, **kwargs)

    monkeypatch.setattr("sepo.online.grpo_step.clipped_loss", watched)
    trainer.compute_loss(trainer.model, inputs).backward()
    moved = logps[0].grad != 0
    assert not moved[~selection].any()
    assert moved[selection & (inputs[ADVANTAGES] != 0)].all()
    # As TRL's own mask by entropy: the divisor counts all tokens.
    expected = -inputs[ADVANTAGES][selection] / mask.sum()
    torch.testing.assert_close(logps[0].grad[selection], expected, check_dtype=False)


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_groups_with_equal_rewards_are_counted(tmp_path, scale):
    trainer = trainer_of(Ours, tmp_path, rto=RtoMethod(**GRPO, scale=scale), scale_rewards=scale)
    trainer.reward_funcs = [lambda completion_ids, **columns: [1.0] * SAMPLES + list(range(SAMPLES))]
    rows = [trainer.train_dataset[index] for index in (0, 1) for _ in range(SAMPLES)]
    batch = trainer._generate_and_score_completions(rows)
    assert trainer._metrics["train"]["rto/equal_rewards"] == [0.5]
    assert not batch[ADVANTAGES][:SAMPLES].any()
    assert batch[ADVANTAGES][SAMPLES:].any(-1).all()


@pytest.mark.host
def test_two_processes_train_as_one(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    online.main(folders[0])
    port = str(20000 + os.getpid() % 20000)
    words = [BIN / "torchrun", "--nproc_per_node", "2", "--master_port", port, "-m", online.__name__, folders[1]]
    run(words, cwd=tmp_path, env=environment(PYTHONPATH=python_path()), fresh=True)
    found = [(adapter(folder), json.loads((folder / "log.json").read_text())) for folder in folders]
    (one, log), (two, other_log) = found
    assert one.keys() == two.keys()
    before = model_of(adapter=True).state_dict()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-7, atol=1e-8)
        assert float((value - before[name]).abs().max()) > 1e-6
    assert len(log) == len(other_log) == 3
    for first, second in zip(log, other_log, strict=True):
        for name in ("reward", "kl", "entropy", "select/ratio", "rto/dense_return"):
            if name in first:
                assert second[name] == pytest.approx(first[name], rel=1e-5)
