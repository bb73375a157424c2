"""Token weights from hidden states through the step (OTPO), against the states that the plain model returns."""

import contextlib
from dataclasses import dataclass, replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from sepo.objectives import StateWeight, compute_preference_loss, preference_loss, resolve_method
from sepo.objectives.transport import transport_weights
from sepo.training import preference_step
from sepo.training.batch_parts import Parts
from tests.support.steps import assert_same, collate, gradients, logsigmoid, make_pairs, running
from tests.training.conftest import load

PAIRS = make_pairs(4, seed=6)
SETTINGS = {"beta": 0.5, "reg": 0.1, "reg_m": 0.3}
OTPO = resolve_method("otpo", **SETTINGS)
SIDES = ("chosen", "rejected")


def row(model, pair, side):
    """Return log-probabilities and states of one response's tokens, from a plain forward pass over its row."""
    ids, labels = torch.tensor([pair[f"{side}_input_ids"]]), pair[f"{side}_labels"]
    before = [t - 1 for t, label in enumerate(labels) if label != -100]
    output = model(ids, output_hidden_states=True)
    logps = output.logits[0].log_softmax(-1)[before, ids[0, before[0] + 1 :]]
    return logps, output.hidden_states[-1][0, before]


def slow_loss(policy, reference, pairs, nll_weight=0.0):
    """Compute the loss one pair at a time, with the weights of ``transport_weights``."""
    losses = []
    for pair in pairs:
        (w, h_w), (l, h_l) = (row(policy, pair, side) for side in SIDES)  # noqa: E741
        with torch.no_grad():
            ref_w, ref_l = (row(reference, pair, side)[0] for side in SIDES)
        a, b = transport_weights(h_w.detach(), h_l.detach(), reg=SETTINGS["reg"], reg_m=SETTINGS["reg_m"])
        margin = (a * (w - ref_w)).sum() - (b * (l - ref_l)).sum()
        losses.append(-logsigmoid(SETTINGS["beta"] * margin) - nll_weight * w.mean())
    return sum(losses) / len(losses)


def padded(rows):
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def pure_inputs(policy, reference, pairs):
    """Return the inputs of ``compute_preference_loss`` for pairs, from plain forward passes; padding is zeros."""
    tensors = {}
    for side in SIDES:
        logps, states = zip(*(row(policy, pair, side) for pair in pairs), strict=True)
        tensors[f"policy_{side}_logps"], tensors[f"{side}_states"] = padded(logps), padded(states)
        with torch.no_grad():
            tensors[f"ref_{side}_logps"] = padded([row(reference, pair, side)[0] for pair in pairs])
        tensors[f"{side}_mask"] = padded([torch.ones(len(values), dtype=torch.bool) for values in logps])
        scores = [torch.tensor(pair[f"{side}_scores"], dtype=torch.float64) for pair in pairs]
        tensors[f"{side}_scores"] = padded(scores)
    return tensors


def step(policy, reference, pairs=PAIRS, *, method=OTPO, extra=0, **options):
    batch = collate(pairs, method, extra)
    return preference_step(policy, batch, method=method, reference=running(reference), **options)


@pytest.mark.parametrize("nll_weight", [0.0, 0.3])
@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("extra", [0, 3])
def test_step_equals_the_slow_loss(policy, reference, nll_weight, share_prompts, extra):
    output = step(policy, reference, extra=extra, share_prompts=share_prompts, chosen_nll_weight=nll_weight)
    assert_same(policy, output.loss, slow_loss(policy, reference, PAIRS, nll_weight), tolerance=1e-9)


HEADS = {
    "frozen_head": {"target_modules": ["q_proj", "down_proj"]},
    "lora_on_head": {"target_modules": ["q_proj", "lm_head"]},
    "head_saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("settings", HEADS.values(), ids=HEADS)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # PEFT takes untied models for tied ones
def test_step_of_an_adapter_equals_the_slow_loss(world, reference, settings):
    torch.manual_seed(1)
    model = get_peft_model(load(world), LoraConfig(r=2, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    found, expected = step(model, reference).loss, slow_loss(model, reference, PAIRS)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0.0)
    made = []
    for loss in (found, expected):
        model.zero_grad()
        loss.backward()
        made.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*made, rtol=1e-8, atol=1e-9)


COMPOSITIONS = {
    "otpo": ("otpo", SETTINGS),
    "over the tokens of an oracle": ("otpo", {**SETTINGS, "token_scorer": "oracle", "chosen_ratio": 0.5}),
    "over the least likely tokens": ("otpo", {**SETTINGS, "token_scorer": "confidence", "rejected_ratio": 0.6}),
    "in simpo": ("simpo", {"token_weight": "transport", "transport_reg": 0.1}),
    "in a sum": ({"dpo": 0.7, "simpo": 0.3}, {"token_weight": "transport"}),
    "in wpo with pref_ftx": ("wpo", {"token_weight": "transport", "pref_ftx": 0.2, "token_scorer": "oracle"}),
}


@pytest.mark.parametrize("case", COMPOSITIONS)
def test_step_equals_the_pure_function(policy, reference, case):
    objective, settings = COMPOSITIONS[case]
    method = resolve_method(objective, **settings)
    tensors = pure_inputs(policy, reference, PAIRS)
    if method.needs_log_sum_p2:
        for side in SIDES:
            logits = [policy(torch.tensor([pair[f"{side}_input_ids"]])).logits[0].log_softmax(-1) for pair in PAIRS]
            lengths = [len(pair[f"{side}_scores"]) for pair in PAIRS]
            p2 = [(2 * rows).logsumexp(-1)[-length - 1 : -1] for rows, length in zip(logits, lengths, strict=True)]
            tensors[f"{side}_log_sum_p2"] = padded(p2).detach()
    expected = compute_preference_loss(objective, **tensors, **settings)
    watched = []
    output = step(policy, reference, method=method, watch=watched.append)
    assert_same(policy, output.loss, expected.losses.mean(), tolerance=1e-9)
    (seen,) = watched
    for number, side in enumerate(SIDES):
        weights = getattr(expected, f"{side}_weights")
        mask = tensors[f"{side}_mask"]
        rows = slice(number * len(PAIRS), (number + 1) * len(PAIRS))
        in_batch = collate(PAIRS, method)["labels"][rows, 1:] != -100
        torch.testing.assert_close(seen.weights[rows][in_batch], weights[mask], rtol=1e-9, atol=0.0)
        effective = (weights.sum(-1).square() / weights.square().sum(-1)).mean()
        assert output.metrics[f"select/{side}_effective"] == pytest.approx(effective.item(), rel=1e-6)


@dataclass(frozen=True)
class Norms(StateWeight):
    """A weight of another package: the squared norm of a token's state, relative to the largest of the pair."""

    def of_pair(self, chosen, rejected):
        norms = torch.cat([chosen, rejected]).square().sum(-1)
        return (norms / norms.max()).split([len(chosen), len(rejected)])


@pytest.mark.parametrize("objective", ["dpo", "simpo"])
def test_any_weight_can_read_the_states(policy, reference, objective):
    method = replace(resolve_method(objective), token_weight=Norms())
    output = step(policy, reference, method=method)
    losses = []
    for pair in PAIRS:
        tensors = pure_inputs(policy, reference, [pair])
        norms = [tensors[f"{side}_states"].detach().square().sum(-1) for side in SIDES]
        largest = max(values.max() for values in norms)
        logps = {name: values for name, values in tensors.items() if name.endswith("_logps")}
        weights = {f"{side}_weights": values / largest for side, values in zip(SIDES, norms, strict=True)}
        selections = {f"{side}_selection": tensors[f"{side}_mask"] for side in SIDES}
        losses.append(preference_loss(method, **logps, **weights, **selections).losses)
    assert_same(policy, output.loss, torch.cat(losses).mean(), tolerance=1e-9)


def test_accumulated_batches_of_one_equal_one_batch(policy, reference):
    whole = step(policy, reference).loss
    target = gradients(policy, whole)
    policy.zero_grad()
    for pair in PAIRS:
        (step(policy, reference, [pair]).loss / len(PAIRS)).backward()
    made = {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}
    torch.testing.assert_close(made, target, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("order", [(3, 0, 2, 1), (1, 2, 3, 0)])
def test_order_and_parts_do_not_matter(policy, reference, order, share_prompts):
    expected = step(policy, reference).loss
    assert_same(policy, step(policy, reference, [PAIRS[i] for i in order]).loss, expected, tolerance=1e-9)
    split = step(policy, reference, parts=Parts(12), share_prompts=share_prompts).loss
    assert_same(policy, split, step(policy, reference).loss, tolerance=1e-9)


def test_pairs_that_only_fill_the_batch_change_nothing(policy, reference):
    filled = step(policy, reference, [*PAIRS, PAIRS[0]], counted=len(PAIRS)).loss
    assert_same(policy, filled, step(policy, reference).loss, tolerance=1e-9)


def test_the_policy_runs_once(policy, reference):
    calls = []
    hook = policy.model.register_forward_hook(lambda *_: calls.append(1))
    with contextlib.closing(contextlib.ExitStack()) as stack:
        stack.callback(hook.remove)
        step(policy, reference)
    assert len(calls) == 1


def test_weights_are_those_of_float32_under_autocast(world):
    """The states may be in half precision, the transport is not."""
    model = LlamaForCausalLM.from_pretrained(world / "policy", dtype=torch.float32).eval()
    seen, states = [], []
    hook = model.lm_head.register_forward_pre_hook(lambda module, given: states.append(given[0].detach()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step(model, model, PAIRS[:1], watch=seen.append, share_prompts=False)
    hook.remove()
    labels = collate(PAIRS[:1])["labels"][:, 1:] != -100
    chosen, rejected = (states[-1][side, :-1][labels[side]] for side in (0, 1))
    expected = transport_weights(chosen, rejected, reg=SETTINGS["reg"], reg_m=SETTINGS["reg_m"])
    for side in (0, 1):
        assert torch.equal(seen[0].weights[side][labels[side]], expected[side])
