"""Steps with a reference against a loop over full logits, and the kinds of references."""

import contextlib
import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from sepo.errors import SepoError
from sepo.objectives import resolve_method
from sepo.training import preference_step
from sepo.training.starting_policy import StartingPolicy
from tests.support.steps import PAIRS, assert_same, collate, logsigmoid, running, slow_log_probs


def log_ratios(policy, reference, pair, side):
    ids, labels = pair[f"{side}_input_ids"], pair[f"{side}_labels"]
    policy_logps = slow_log_probs(policy, ids, labels)
    with torch.no_grad():
        ref_logps = slow_log_probs(reference, ids, labels)
    return [a - b for a, b in zip(policy_logps, ref_logps, strict=True)]


def slow_loss(policy, reference, objective, beta):
    losses = []
    for pair in PAIRS:
        chosen, rejected = (log_ratios(policy, reference, pair, side) for side in ("chosen", "rejected"))
        if objective == "selective_dpo":
            # Eq. 6: chosen tokens on which the policy is behind the reference, rejected ones on which it is ahead
            chosen = sorted(chosen, key=torch.Tensor.item)[: max(1, int(0.4 * len(chosen) + 1e-9))]
            rejected = sorted(rejected, key=torch.Tensor.item, reverse=True)[: max(1, int(0.4 * len(rejected) + 1e-9))]
        w, l = sum(chosen), sum(rejected)  # noqa: E741  (the papers' letters)
        if objective == "minor_dpo":
            l = torch.clamp(l, min=0.0)  # noqa: E741
        losses.append(-logsigmoid(beta * (w - l)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("objective", "beta"), [("dpo", 0.1), ("minor_dpo", 0.1), ("selective_dpo", 0.01)])
def test_step_equals_the_slow_loss(policy, reference, objective, beta):
    method = resolve_method(objective)
    output = preference_step(policy, collate(PAIRS, method), method=method, reference=running(reference))
    assert_same(policy, output.loss, slow_loss(policy, reference, objective, beta))
    assert all(parameter.grad is None for parameter in reference.parameters())


def test_live_selection_is_logged_and_has_its_ratio(policy, reference):
    method = resolve_method("selective_dpo", chosen_ratio=0.5, rejected_ratio=0.25)
    metrics = preference_step(policy, collate(PAIRS, method), method=method, reference=running(reference)).metrics
    lengths = [[len(pair[f"{side}_scores"]) for pair in PAIRS] for side in ("chosen", "rejected")]
    kept = [sum(max(1, int(ratio * n)) for n in side) for ratio, side in zip((0.5, 0.25), lengths, strict=True)]
    assert metrics["select/tokens"] == sum(kept)
    assert metrics["select/chosen_ratio"] == pytest.approx(kept[0] / sum(lengths[0]))


def test_drift_and_clamped_share(policy, reference):
    method = resolve_method("minor_dpo")
    metrics = preference_step(policy, collate(PAIRS, method), method=method, reference=running(reference)).metrics
    ratios = [[log_ratios(policy, reference, pair, side) for pair in PAIRS] for side in ("chosen", "rejected")]
    for side, rows in zip(("chosen", "rejected"), ratios, strict=True):
        values = [value.item() for row in rows for value in row]
        assert metrics[f"kl/{side}"] == pytest.approx(sum(values) / len(values), rel=1e-5)
    below = [sum(row).item() <= 0 for row in ratios[1]]
    assert metrics["objective/rejected_clamped"] == pytest.approx(sum(below) / len(below))


@pytest.mark.parametrize("objective", ["minor_dpo", "simpo", "ipo"])
def test_oracle_selection_composes_with_any_objective(policy, reference, objective):
    """The loss over selected tokens equals the objective over responses with these tokens only."""
    selective = resolve_method(objective, token_scorer="oracle", chosen_ratio=0.4, rejected_ratio=0.25)
    plain = resolve_method(objective)
    batch = collate(PAIRS, selective)
    output = preference_step(policy, batch, method=selective, reference=running(reference))
    kept = torch.where(batch["selection"], batch["labels"], -100)
    only = {name: value for name, value in batch.items() if name != "selection"} | {"labels": kept}
    expected = preference_step(policy, only, method=plain, reference=running(reference))
    assert_same(policy, output.loss, expected.loss)


def test_a_method_with_a_reference_requires_one(policy):
    method = resolve_method("dpo")
    with pytest.raises(SepoError, match="dpo compares the policy with a reference, and none was given"):
        preference_step(policy, collate(PAIRS, method), method=method)


def adapted(world):
    torch.manual_seed(1)
    model = LlamaForCausalLM.from_pretrained(world / "policy", dtype=torch.float64).eval()
    model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    for name, parameter in model.named_parameters():  # an adapter that SFT has trained
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_starting_policy_is_the_initial_policy(world):
    method = resolve_method("minor_dpo", beta=0.3)
    model = adapted(world)
    frozen = copy.deepcopy(model).requires_grad_(False)
    start = StartingPolicy(model)

    @contextlib.contextmanager
    def as_it_was():
        with start.active():
            yield model

    first = preference_step(model, collate(PAIRS, method), method=method, reference=as_it_was)
    assert first.loss.item() == pytest.approx(0.6931471805599453, rel=1e-12)
    assert first.metrics["kl/chosen"] == 0
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    moved = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    later = preference_step(model, collate(PAIRS, method), method=method, reference=as_it_was)
    separate = preference_step(model, collate(PAIRS, method), method=method, reference=running(frozen))
    assert later.loss.item() == separate.loss.item() != first.loss.item()
    assert all(torch.equal(parameter, moved[name]) for name, parameter in model.named_parameters())
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for loss in (later.loss, separate.loss):
        model.zero_grad()
        loss.backward()
        assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trainable


def test_current_weights_are_restored_after_an_error(world):
    model = adapted(world)
    start = StartingPolicy(model)
    parameter = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    with torch.no_grad():
        parameter.add_(1.0)
    now = parameter.detach().clone()
    with contextlib.suppress(RuntimeError), start.active():
        assert not torch.equal(parameter, now)
        raise RuntimeError("in the reference pass")
    assert torch.equal(parameter, now)


def test_a_disabled_adapter_equals_a_separate_reference_model(world):
    method = resolve_method("dpo")
    model = adapted(world)
    base = LlamaForCausalLM.from_pretrained(world / "policy", dtype=torch.float64).eval()

    @contextlib.contextmanager
    def without_adapter():
        with model.disable_adapter():
            yield model

    batch = collate(PAIRS, method)
    off = preference_step(model, batch, method=method, reference=without_adapter).loss
    separate = preference_step(model, batch, method=method, reference=running(base)).loss
    assert off.item() == separate.item()
    model.zero_grad()
    off.backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    separate.backward()
    assert all(torch.equal(got[name], p.grad) for name, p in model.named_parameters() if p.requires_grad)


def test_dropout_does_not_reach_the_reference(world):
    """A policy that continues training an adapter with dropout is its own reference, without the dropout."""
    base = LlamaForCausalLM.from_pretrained(world / "policy", dtype=torch.float64)
    model = get_peft_model(base, LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    start = StartingPolicy(model)

    @contextlib.contextmanager
    def own_start():
        with start.active():
            yield model

    method = resolve_method("dpo")
    batch = collate(PAIRS, method)
    evaluated = preference_step(model.eval(), batch, method=method, reference=own_start)
    assert evaluated.metrics["kl/chosen"] == 0
    model.train()
    seen = []
    hook = model.register_forward_hook(lambda *_: seen.append(model.training))
    trained = preference_step(model, batch, method=method, reference=own_start)
    hook.remove()
    assert seen == [False, True]
    assert all(module.training for module in model.modules())
    policy_logps = trained.metrics["logps/chosen"]
    assert policy_logps != pytest.approx(evaluated.metrics["logps/chosen"])  # the policy itself has its dropout
    again = preference_step(model, batch, method=method, reference=own_start)
    reference = [out.metrics["logps/chosen"] - out.metrics["rewards/chosen"] / 0.1 for out in (trained, again)]
    assert reference[0] == pytest.approx(reference[1], rel=1e-6)
