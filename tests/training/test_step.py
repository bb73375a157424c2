"""The step against a loop over full logits, and its invariance to batching, padding and order."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from sepo.errors import SepoError
from sepo.objectives import resolve_method, select
from sepo.training import SELECTION, StepCollator, preference_step
from tests.support.steps import (
    CHOSEN_RATIO,
    GAMMA,
    PAIRS,
    REJECTED_RATIO,
    SEPO,
    assert_same,
    collate,
    gradients,
    logsigmoid,
    make_pairs,
    slow_log_probs,
)

EVERYTHING = resolve_method("sepo", gamma=GAMMA, chosen_ratio=1.0, rejected_ratio=1.0)


def slow_sides(model, pair):
    """Return (log-probabilities, selected ones) of the chosen and of the rejected response."""
    sides = []
    for side, ratio, sign in (("chosen", CHOSEN_RATIO, -1), ("rejected", REJECTED_RATIO, 1)):
        logps = slow_log_probs(model, pair[f"{side}_input_ids"], pair[f"{side}_labels"])
        scores = pair[f"{side}_scores"]
        kept = max(1, math.floor(ratio * len(scores) + 1e-9))
        order = sorted(range(len(scores)), key=lambda index: sign * scores[index])[:kept]
        sides.append((logps, [logps[index] for index in order]))
    return sides


def slow_sepo(model, pairs, nll_weight=0.0):
    losses = []
    for pair in pairs:
        (chosen, best), (_, worst) = slow_sides(model, pair)
        losses.append(-logsigmoid(GAMMA * (sum(best) / len(best) - sum(worst) / len(worst))))
        losses[-1] = losses[-1] - nll_weight * sum(chosen) / len(chosen)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("chunk_tokens", [None, 1])
@pytest.mark.parametrize("nll_weight", [0.0, 0.3])
def test_sepo_equals_the_slow_loss(policy, nll_weight, chunk_tokens):
    output = preference_step(
        policy, collate(PAIRS), method=SEPO, chosen_nll_weight=nll_weight, chunk_tokens=chunk_tokens
    )
    assert_same(policy, output.loss, slow_sepo(policy, PAIRS, nll_weight))


@pytest.mark.parametrize("longer", ["chosen", "rejected"])
@pytest.mark.parametrize("objective", ["sepo", "simpo", "confidence"])
def test_responses_may_start_at_different_positions(policy, objective, longer):
    """The prompt of one side ends in tokens that the other side's does not have, or has in its response."""
    method = SEPO
    if objective != "sepo":
        options = {"token_scorer": "confidence", "chosen_ratio": 0.5, "rejected_ratio": 0.5}
        method = resolve_method("simpo", **(options if objective == "confidence" else {}))
    pairs, other = copy.deepcopy(PAIRS), {"chosen": "rejected", "rejected": "chosen"}[longer]
    for number, pair in enumerate(pairs):
        start, thought = pair[f"{longer}_labels"].count(-100), [301, 302, 303]
        for name, values in (("input_ids", thought), ("labels", [-100] * 3)):
            pair[f"{longer}_{name}"][start:start] = values
        if number % 2:  # the other response begins with some of these tokens
            for name in ("input_ids", "labels"):
                pair[f"{other}_{name}"][start:start] = thought[:2]
            pair[f"{other}_scores"][:0] = [9.0, -9.0]
    assert all(pair["chosen_labels"].count(-100) != pair["rejected_labels"].count(-100) for pair in pairs)
    shared, padded = (
        preference_step(policy, collate(pairs, method), method=method, share_prompts=share) for share in (True, False)
    )
    if objective == "sepo":
        assert_same(policy, shared.loss, slow_sepo(policy, pairs))
        shared = preference_step(policy, collate(pairs, method), method=method)
    assert shared.metrics == pytest.approx(padded.metrics, rel=1e-6)
    assert_same(policy, shared.loss, padded.loss)


def test_the_nll_of_the_method_equals_that_of_the_step(policy):
    """``pref_ftx`` as a part of the method also reads all chosen tokens, not only the selected ones."""
    method = resolve_method("sepo", gamma=GAMMA, chosen_ratio=CHOSEN_RATIO, rejected_ratio=REJECTED_RATIO, pref_ftx=0.3)
    output = preference_step(policy, collate(PAIRS, method), method=method)
    assert_same(policy, output.loss, slow_sepo(policy, PAIRS, 0.3))


def test_ratio_one_equals_the_unselected_mean_objective(policy):
    output = preference_step(policy, collate(PAIRS, EVERYTHING), method=EVERYTHING)
    margins = []
    for pair in PAIRS:
        chosen, rejected = (torch.stack(logps) for logps, _ in slow_sides(policy, pair))
        margins.append(chosen.mean() - rejected.mean())
    assert_same(policy, output.loss, -logsigmoid(GAMMA * torch.stack(margins)).mean())
    unselected = resolve_method("sepo", gamma=GAMMA, token_scorer="none")
    plain = preference_step(policy, collate(PAIRS, unselected), method=unselected)
    assert output.loss.item() == plain.loss.item()
    assert output.metrics == plain.metrics


@pytest.mark.parametrize("nll_weight", [0.0, 0.3])
def test_a_batch_of_four_equals_four_accumulated_batches_of_one(policy, nll_weight):
    def loss(pairs):
        return preference_step(policy, collate(pairs), method=SEPO, chosen_nll_weight=nll_weight).loss

    whole = loss(PAIRS)
    expected = gradients(policy, whole)
    policy.zero_grad()
    parts = [loss([pair]) / 4 for pair in PAIRS]
    for part in parts:
        part.backward()
    assert math.isclose(sum(part.item() for part in parts), whole.item(), rel_tol=1e-12)
    accumulated = {name: parameter.grad for name, parameter in policy.named_parameters()}
    torch.testing.assert_close(accumulated, expected, rtol=1e-11, atol=1e-11)


@settings(max_examples=15)
@given(st.permutations(range(4)), st.integers(0, 9), st.integers(0, 1000))
def test_padding_and_order_do_not_matter(world, order, extra, seed):
    model = LlamaForCausalLM.from_pretrained(world / "policy", dtype=torch.float64).eval()
    pairs = make_pairs(4, seed)
    moved = preference_step(model, collate([pairs[index] for index in order], extra=extra), method=SEPO)
    plain = preference_step(model, collate(pairs), method=SEPO)
    assert_same(model, moved.loss, plain.loss)
    # Metrics are float32, and a margin is a small difference of rewards near 1.
    assert moved.metrics == pytest.approx(plain.metrics, rel=1e-6, abs=1e-7)


def test_only_selected_tokens_carry_gradient(policy):
    """Replacing an unselected last token changes nothing, since no token before it attends to it."""
    pairs = copy.deepcopy(PAIRS)
    for pair in pairs:
        pair["rejected_input_ids"] = [*pair["rejected_input_ids"], 7]
        pair["rejected_labels"] = [*pair["rejected_labels"], 7]
        pair["rejected_scores"] = [*pair["rejected_scores"], 100.0]
    other = copy.deepcopy(pairs)
    for pair in other:
        pair["rejected_input_ids"][-1] = pair["rejected_labels"][-1] = 9
    result, target = (preference_step(policy, collate(some), method=SEPO).loss for some in (pairs, other))
    assert_same(policy, result, target, tolerance=1e-14)


@pytest.mark.parametrize("nll_weight", [0.0, 0.3])
def test_metrics(policy, nll_weight):
    metrics = preference_step(policy, collate(PAIRS), method=SEPO, chosen_nll_weight=nll_weight).metrics
    with torch.no_grad():
        sides = [slow_sides(policy, pair) for pair in PAIRS]
    rewards = [[GAMMA * float(sum(kept)) / len(kept) for _, kept in pair] for pair in sides]
    computed = [[float(sum(chosen if nll_weight else best)), float(sum(worst))] for (chosen, best), (_, worst) in sides]
    tokens = [sum(len(pair[side][0]) for pair in sides) for side in (0, 1)]
    selected = [sum(len(pair[side][1]) for pair in sides) for side in (0, 1)]
    counts = [tokens[0] if nll_weight else selected[0], selected[1]]
    assert metrics == pytest.approx(
        {
            "rewards/chosen": sum(won for won, _ in rewards) / 4,
            "rewards/rejected": sum(lost for _, lost in rewards) / 4,
            "rewards/accuracies": sum(won > lost for won, lost in rewards) / 4,
            "rewards/margins": sum(won - lost for won, lost in rewards) / 4,
            "logps/chosen": sum(won for won, _ in computed) / 4,
            "logps/rejected": sum(lost for _, lost in computed) / 4,
            "logps/chosen_mean": sum(won for won, _ in computed) / counts[0],
            "logps/rejected_mean": sum(lost for _, lost in computed) / counts[1],
            "select/chosen_ratio": selected[0] / tokens[0],
            "select/rejected_ratio": selected[1] / tokens[1],
            "select/tokens": sum(selected),
        },
        rel=1e-6,
    )
    assert all(type(value) is float for value in metrics.values())


@pytest.mark.parametrize("objective", ["simpo", "rrhf", "orpo"])
def test_methods_without_selection_and_reference(policy, objective):
    method = resolve_method(objective)
    loss = preference_step(policy, collate(PAIRS, method), method=method).loss
    losses = []
    for pair in PAIRS:
        chosen, rejected = (torch.stack(logps).mean() for logps, _ in slow_sides(policy, pair))
        if objective == "simpo":
            losses.append(-logsigmoid(2.0 * (chosen - rejected) - 1.0))
        elif objective == "rrhf":
            losses.append(torch.relu(rejected - chosen) - chosen)
        else:
            odds = [mean - torch.log1p(-torch.exp(mean)) for mean in (chosen, rejected)]
            losses.append(-chosen - 0.1 * logsigmoid(odds[0] - odds[1]))
    assert_same(policy, loss, torch.stack(losses).mean())


@pytest.mark.parametrize(
    ("objective", "missing"),
    [
        ("dpo", "compares the policy with a reference, and none was given"),
        ("simpo_reg", "the batch has no 'token_rewards'.*RewardCollator"),
        ("selective_dpo", "compares the policy with a reference, and none was given"),
        ("sepo", "the batch has no 'selection'.*SelectionCollator"),
    ],
)
def test_missing_inputs_of_a_method_are_named(policy, objective, missing):
    batch = collate(PAIRS)
    del batch[SELECTION]
    with pytest.raises(SepoError, match=missing):
        preference_step(policy, batch, method=resolve_method(objective))


def test_a_response_without_a_token_raises_with_its_row(policy):
    batch = collate(PAIRS)
    batch["labels"][2] = -100
    batch[SELECTION][2] = False
    with pytest.raises(SepoError, match="chosen response's selection in row 2 has 0 counted tokens"):
        preference_step(policy, batch, method=SEPO)


def test_the_head_runs_on_selected_tokens_only(policy):
    counts = []
    hook = policy.lm_head.register_forward_hook(lambda head, arguments, output: counts.append(output.numel()))
    batch = collate(PAIRS)
    for nll_weight in (0.0, 0.0, 0.3):  # the first call may include the check of the head
        preference_step(policy, batch, method=SEPO, chosen_nll_weight=nll_weight)
    hook.remove()
    rejected = int(batch[SELECTION][4:].sum())
    assert counts[1] == batch[SELECTION].sum()
    assert counts[2] == rejected + (batch["labels"][:4] != -100).sum()


@pytest.mark.parametrize("unit", ["token", "span", "step"])
@pytest.mark.parametrize("scope", ["response", "pair"])
def test_confidence_in_every_unit_and_scope(policy, unit, scope):
    """Live selection of whole units from the step's own log-probabilities, without a reference."""
    method = resolve_method("simpo", token_scorer="confidence", unit=unit, scope=scope)
    pairs = copy.deepcopy(PAIRS)
    for pair in pairs:
        for side in ("chosen", "rejected"):
            pair[f"{side}_steps"] = [place // 3 for place in range(len(pair[f"{side}_scores"]))]

    def batch_of(some, extra=0):
        return StepCollator(lambda rows: collate(rows, method, extra))(some)

    output = preference_step(policy, batch_of(pairs), method=method)
    expected = []
    for pair in pairs:
        sides = {
            side: torch.stack(slow_log_probs(policy, pair[f"{side}_input_ids"], pair[f"{side}_labels"]))
            for side in ("chosen", "rejected")
        }
        arguments = {f"{side}_mask": torch.ones(1, len(logps), dtype=torch.bool) for side, logps in sides.items()}
        arguments |= {f"policy_{side}_logps": logps[None] for side, logps in sides.items()}
        arguments |= {f"{side}_steps": torch.tensor([pair[f"{side}_steps"]]) for side in sides}
        chosen, rejected = select(method, **arguments)
        margin = sides["chosen"][chosen[0]].mean() - sides["rejected"][rejected[0]].mean()
        expected.append(-logsigmoid(2.0 * margin - 1.0))
    assert_same(policy, output.loss, torch.stack(expected).mean())
    moved = preference_step(policy, batch_of(pairs[::-1], extra=3), method=method)
    assert moved.metrics == pytest.approx(output.metrics, rel=1e-6)
    if unit == "step":
        with pytest.raises(SepoError, match=r"the batch has no 'steps'.*StepCollator"):
            preference_step(policy, collate(pairs, method), method=method)
