"""TDPO and WPO through the step, against a loop over both models' full logits."""

import contextlib
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from sepo.errors import SepoError
from sepo.objectives import preference_loss, resolve_method
from sepo.training import preference_step
from sepo.training.starting_policy import StartingPolicy
from tests.support.steps import PAIRS, collate, logsigmoid, running
from tests.training.conftest import load

OBJECTIVES = pytest.mark.parametrize("objective", ["tdpo1", "tdpo2", "wpo"])
BETA, ALPHA = 0.3, 0.7


def method_of(objective, **selection):
    return resolve_method(objective, beta=BETA, **({"alpha": ALPHA} if objective == "tdpo2" else {}), **selection)


def full(model, pair, side):
    """Return the log-probabilities over the vocabulary at every response token of a row, and these tokens."""
    ids, labels = pair[f"{side}_input_ids"], pair[f"{side}_labels"]
    positions = [t for t, label in enumerate(labels) if label != -100]
    log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return log_probs[[t - 1 for t in positions]], torch.tensor([labels[t] for t in positions])


def slow_side(policy, ref_log_probs, pair, side, keep):
    """Return the log-ratio, the summed KL(ref || policy) and WPO's alignment, over the tokens selected by ``keep``."""
    log_p, tokens = full(policy, pair, side)
    log_q = ref_log_probs[id(pair), side]
    keep = keep(side, log_p, log_q, tokens, pair)
    log_p, log_q, tokens = log_p[keep], log_q[keep], tokens[keep]
    rows = torch.arange(len(tokens))
    log_ratio = (log_p[rows, tokens] - log_q[rows, tokens]).sum()
    kl = sum((q.exp() * (q - p)).sum() for p, q in zip(log_p, log_q, strict=True))
    alignment = (log_p[rows, tokens] - log_p.exp().pow(2).sum(-1).log()).mean()
    return log_ratio, kl, alignment.detach()


def everything(side, log_p, log_q, tokens, pair):
    return torch.arange(len(tokens))


def by_score(side, log_p, log_q, tokens, pair):
    """Select as SePO at 0.4: the highest scores in chosen, the lowest in rejected."""
    scores = torch.tensor(pair[f"{side}_scores"])
    order = scores.sort(descending=side == "chosen", stable=True).indices
    return order[: max(1, int(0.4 * len(tokens) + 1e-9))]


def by_lag(side, log_p, log_q, tokens, pair):
    """Select as Selective-DPO at 0.4: chosen tokens below the reference, rejected ones above it."""
    rows = torch.arange(len(tokens))
    lag = (log_q[rows, tokens] - log_p[rows, tokens]).detach()
    order = lag.sort(descending=side == "chosen", stable=True).indices
    return order[: max(1, int(0.4 * len(tokens) + 1e-9))]


def reference_in_place(in_place):
    with torch.no_grad(), in_place() as model:
        return {(id(pair), side): full(model, pair, side)[0] for pair in PAIRS for side in ("chosen", "rejected")}


def slow_loss(policy, in_place, objective, keep=everything):
    ref_log_probs = reference_in_place(in_place)
    losses = []
    for pair in PAIRS:
        w, kl_w, a_w = slow_side(policy, ref_log_probs, pair, "chosen", keep)
        l, kl_l, a_l = slow_side(policy, ref_log_probs, pair, "rejected", keep)  # noqa: E741
        if objective == "tdpo1":
            margin, weight = w - l - (kl_l - kl_w), 1.0
        elif objective == "tdpo2":
            margin, weight = w - l - ALPHA * (kl_l - kl_w.detach()), 1.0
        else:
            margin, weight = w - l, min(1.0, math.exp(a_w + a_l))
        losses.append(-weight * logsigmoid(BETA * margin))
    return sum(losses) / len(losses)


def trained_gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def assert_same(model, loss, expected, tolerance=1e-9):
    assert math.isclose(loss.item(), expected.item(), rel_tol=tolerance)
    result, target = trained_gradients(model, loss), trained_gradients(model, expected)
    assert result.keys() == target.keys()
    largest = max(grad.abs().max().item() for grad in target.values())
    torch.testing.assert_close(result, target, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("chunk_tokens", [None, 1, 5])
@OBJECTIVES
def test_step_equals_the_slow_loss_against_another_model(policy, reference, objective, chunk_tokens):
    method = method_of(objective)
    output = preference_step(
        policy, collate(PAIRS, method), method=method, reference=running(reference), chunk_tokens=chunk_tokens
    )
    assert_same(policy, output.loss, slow_loss(policy, running(reference), objective))
    assert all(parameter.grad is None for parameter in reference.parameters())


@pytest.mark.parametrize("scorer", ["oracle", "policy_ref"])
@OBJECTIVES
def test_selections_compose(policy, reference, objective, scorer):
    method = method_of(objective, token_scorer=scorer, chosen_ratio=0.4, rejected_ratio=0.4)
    output = preference_step(policy, collate(PAIRS, method), method=method, reference=running(reference))
    keep = {"oracle": by_score, "policy_ref": by_lag}[scorer]
    assert_same(policy, output.loss, slow_loss(policy, running(reference), objective, keep))


HEADS = {
    "plain_head": {"target_modules": ["q_proj", "down_proj"]},
    "lora_on_head": {"target_modules": ["q_proj", "lm_head"]},
    "head_saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


def adapted(world, settings):
    torch.manual_seed(1)
    model = get_peft_model(load(world), LoraConfig(r=2, **settings)).eval()
    return trained(model)


def trained(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("state", ["adapter_off", "starting_policy"])
@pytest.mark.parametrize("settings", HEADS.values(), ids=HEADS)
@OBJECTIVES
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # PEFT takes untied models for tied ones
def test_step_equals_the_slow_loss_of_an_adapter(world, objective, settings, state):
    model, method = adapted(world, settings), method_of(objective)
    start = StartingPolicy(model)

    @contextlib.contextmanager
    def in_place():
        with start.active() if state == "starting_policy" else model.disable_adapter():
            yield model

    trained(model)
    output = preference_step(model, collate(PAIRS, method), method=method, reference=in_place, chunk_tokens=3)
    assert_same(model, output.loss, slow_loss(model, in_place, objective))


@OBJECTIVES
def test_the_policy_as_its_reference_gives_log_2_and_no_divergence(policy, objective):
    method = method_of(objective)
    output = preference_step(policy, collate(PAIRS, method), method=method, reference=running(policy))
    weight = output.metrics["objective/pair_weight"] if objective == "wpo" else 1.0
    if objective != "wpo":
        assert output.loss.item() == pytest.approx(math.log(2), rel=1e-12)
        names = ("kl/chosen_full", "kl/rejected_full", "objective/chosen_kl", "objective/rejected_kl")
        assert [output.metrics[name] for name in names] == [0.0] * 4
    assert output.loss.item() == pytest.approx(weight * math.log(2), rel=1e-6)


def test_which_divergence_carries_gradient():
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(2, 3, dtype=torch.bool)
    for objective, chosen_flows in (("tdpo1", True), ("tdpo2", False)):
        kl = [torch.rand(2, 3, generator=generator, requires_grad=True) for _ in range(2)]
        logps = torch.zeros(2, 3)
        losses = preference_loss(
            method_of(objective), policy_chosen_logps=logps, policy_rejected_logps=logps, ref_chosen_logps=logps,
            ref_rejected_logps=logps, chosen_selection=mask, rejected_selection=mask, chosen_kl=kl[0],
            rejected_kl=kl[1],
        ).losses  # fmt: skip
        losses.sum().backward()
        assert (kl[0].grad is not None and bool(kl[0].grad.any())) is chosen_flows
        assert kl[1].grad.all()


@pytest.mark.parametrize("nll_weight", [0.0, 0.3])
def test_the_divergence_is_logged_over_the_computed_tokens(policy, reference, nll_weight):
    method = method_of("tdpo2", token_scorer="oracle", chosen_ratio=0.4, rejected_ratio=0.4)
    metrics = preference_step(
        policy, collate(PAIRS, method), method=method, reference=running(reference), chosen_nll_weight=nll_weight
    ).metrics
    ref_log_probs = reference_in_place(running(reference))
    for side in ("chosen", "rejected"):
        keep = everything if nll_weight and side == "chosen" else by_score
        total = count = 0
        for pair in PAIRS:
            total += slow_side(policy, ref_log_probs, pair, side, keep)[1].item()
            log_p, tokens = full(policy, pair, side)
            count += len(keep(side, log_p, ref_log_probs[id(pair), side], tokens, pair))
        assert metrics[f"kl/{side}_full"] == pytest.approx(total / count, rel=1e-6)


def test_no_divergence_is_logged_if_none_was_computed(policy, reference):
    method = method_of("wpo")
    metrics = preference_step(policy, collate(PAIRS, method), method=method, reference=running(reference)).metrics
    assert not any(name.endswith("_full") for name in metrics)
    assert 0 < metrics["objective/pair_weight"] <= 1


def test_a_reference_with_another_vocabulary_raises(policy):
    from tests.support.tiny import config

    method = method_of("tdpo1")
    other = LlamaForCausalLM(config(policy.config.vocab_size + 8)).double().eval()
    with pytest.raises(SepoError, match=r"the reference's head returns \d+ logits per token.*set a ref_model"):
        preference_step(policy, collate(PAIRS, method), method=method, reference=running(other))
