"""Token rewards in the batch, and the step with T-REG's regularizer against a loop over full logits."""

import contextlib
import doctest
import math

import pytest
import torch

import sepo.training.reward_columns
from sepo.errors import SepoError
from sepo.objectives import resolve_method
from sepo.training import TOKEN_REWARDS, RewardCollator, preference_step
from sepo.training.reward_columns import token_rewards
from tests.support.steps import PAIRS, assert_same, collate, logsigmoid, make_pairs, slow_log_probs


def rewarded(pairs):
    """Add rewards in [-0.5, 0.5] that are not exact in bfloat16; the pairs' scores serve as an oracle's log-ratios."""
    return [
        {**pair, **{f"{side}_token_rewards": [math.tanh(s + 1e-4) / 2 for s in pair[f"{side}_scores"]]
                    for side in ("chosen", "rejected")}}
        for pair in pairs
    ]  # fmt: skip


REWARDED = rewarded(PAIRS)
SUMMED = 2e-6
"""Tolerance for added gradients of two passes: Llama's norm computes in float32 and rounds in each pass."""


def batch_of(pairs, method, origin="prompts", extra=0):
    return RewardCollator(lambda rows: collate(rows, method, extra=extra), origin=origin)(pairs)


def running(model):
    return lambda: contextlib.nullcontext(model)


def test_docstring_examples():
    results = doctest.testmod(sepo.training.reward_columns)
    assert results.attempted > 0
    assert results.failed == 0


def test_rewards_survive_an_engine_that_casts_floating_inputs():
    batch = batch_of(REWARDED, resolve_method("dpo_reg"))
    cast = {name: x.bfloat16() if x.is_floating_point() else x for name, x in batch.items()}
    found = token_rewards(cast)
    labels = batch["labels"]
    for index, side in enumerate(["chosen"] * 4 + ["rejected"] * 4):
        expected = torch.tensor(REWARDED[index % 4][f"{side}_token_rewards"], dtype=torch.float32)
        assert torch.equal(found[index, labels[index] != -100], expected)
        assert not found[index, labels[index] == -100].any()


def test_an_oracles_log_ratios_become_rewards():
    found = token_rewards(batch_of(REWARDED, resolve_method("dpo_reg"), origin="oracle"))
    expected = [1 / (1 + math.exp(-score)) - 0.5 for score in PAIRS[1]["rejected_scores"]]
    assert found[5][found[5] != 0].tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([0.1], r"1 token rewards for a chosen response of \d+ tokens: the token rewards belong to other data"),
        ("0.51", r"a token reward of a chosen response is 0.51, expected a number in \[-0.5, 0.5\]: .* damaged"),
        ("nan", "a token reward of a chosen response is nan"),
    ],
)
def test_rewards_of_other_data_raise(rewards, message):
    pair = dict(REWARDED[0])
    tokens = len(pair["chosen_token_rewards"])
    pair["chosen_token_rewards"] = [float(rewards)] * tokens if isinstance(rewards, str) else rewards * (tokens != 1)
    with pytest.raises(SepoError, match=message):
        batch_of([pair], resolve_method("dpo_reg"))


def test_a_batch_without_rewards_raises(policy):
    method = resolve_method("simpo_reg")
    with pytest.raises(SepoError, match="the batch has no 'token_rewards'"):
        preference_step(policy, collate(PAIRS, method), method=method)


def slow_loss(policy, reference, pairs, objective, *, weighting="sequence", key="token_rewards", squash=float):
    """Compute Eq. 2 (and its form for SimPO), token by token."""
    losses = []
    for pair in pairs:
        logps, ratios, credits = {}, {}, {}
        for side in ("chosen", "rejected"):
            ids, labels = pair[f"{side}_input_ids"], pair[f"{side}_labels"]
            logps[side] = slow_log_probs(policy, ids, labels)
            with torch.no_grad():
                ref = slow_log_probs(reference, ids, labels)
            ratios[side] = sum(logps[side]) - sum(ref)
            rewards = [torch.tensor(squash(value), dtype=torch.float32).double() for value in pair[f"{side}_{key}"]]
            credits[side] = sum(reward * logp for reward, logp in zip(rewards, logps[side], strict=True))
        if objective == "dpo_reg":
            margin = 0.1 * (ratios["chosen"] - ratios["rejected"])
            beta = {"chosen": 0.1, "rejected": 0.1}
        else:
            means = {side: sum(values) / len(values) for side, values in logps.items()}
            margin = 2.0 * (means["chosen"] - means["rejected"]) - 1.0
            beta = {side: 2.0 / len(values) for side, values in logps.items()}
        weight = torch.sigmoid(-margin.detach()) if weighting == "sequence" else 1.0
        regularizer = -sum(beta[side] * credits[side] for side in credits)
        losses.append(-logsigmoid(margin) + 0.25 * weight * regularizer)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("weighting", ["sequence", "static"])
@pytest.mark.parametrize("objective", ["dpo_reg", "simpo_reg"])
def test_step_equals_the_slow_loss(policy, reference, objective, weighting):
    method = resolve_method(objective, weighting=weighting)
    output = preference_step(policy, batch_of(REWARDED, method), method=method, reference=running(reference))
    assert_same(policy, output.loss, slow_loss(policy, reference, REWARDED, objective, weighting=weighting))


def test_step_with_the_oracles_reward(policy, reference):
    method = resolve_method("dpo_reg")
    batch = batch_of(PAIRS, method, origin="oracle")
    expected = slow_loss(
        policy, reference, PAIRS, "dpo_reg", key="scores", squash=lambda score: 1 / (1 + math.exp(-score)) - 0.5
    )
    output = preference_step(policy, batch, method=method, reference=running(reference))
    assert_same(policy, output.loss, expected, tolerance=1e-6)  # rewards are float32


def test_padding_order_and_batching_do_not_matter(policy, reference):
    method = resolve_method("dpo_reg", beta=0.7)
    pairs = rewarded(make_pairs(4, seed=5))

    def step(some, extra=0):
        return preference_step(policy, batch_of(some, method, extra=extra), method=method, reference=running(reference))

    whole, moved = step(pairs), step([pairs[index] for index in (2, 0, 3, 1)], extra=7)
    assert_same(policy, moved.loss, whole.loss)
    assert moved.metrics == pytest.approx(whole.metrics, rel=1e-6)
    assert_same(policy, sum(step([pair]).loss for pair in pairs) / 4, step(pairs).loss)


def test_under_selection_the_regularizer_reads_the_selected_tokens_only(policy):
    method = resolve_method("sepo", chosen_ratio=0.4, rejected_ratio=0.25, treg_alpha=0.5, treg_weighting="static")
    assert not method.needs_all_tokens
    batch = batch_of(REWARDED, method)
    output = preference_step(policy, batch, method=method)
    plain_method = resolve_method("sepo", chosen_ratio=0.4, rejected_ratio=0.25)
    plain = preference_step(policy, {n: x for n, x in batch.items() if n != TOKEN_REWARDS}, method=plain_method)
    added = 0.0
    for index, pair in enumerate(REWARDED):
        for side, row in (("chosen", index), ("rejected", index + 4)):
            logps = slow_log_probs(policy, pair[f"{side}_input_ids"], pair[f"{side}_labels"])
            selected = batch["selection"][row][batch["labels"][row] != -100].tolist()
            rewards = torch.tensor(pair[f"{side}_token_rewards"], dtype=torch.float32).double()
            kept = [r * logp for r, logp, keep in zip(rewards, logps, selected, strict=True) if keep]
            added = added - 0.5 * sum(kept) / len(kept) / 4
    assert_same(policy, output.loss, plain.loss + added, tolerance=SUMMED)


@pytest.mark.parametrize("objective", ["minor_dpo", "ipo", "orpo", "hinge"])
def test_alpha_adds_the_regularizer_to_any_objective(policy, reference, objective):
    losses = []
    for alpha in (0.0, 0.5, 1.0):
        method = resolve_method(objective, treg_alpha=alpha, treg_weighting="static")
        batch = batch_of(REWARDED, method)
        losses.append(preference_step(policy, batch, method=method, reference=running(reference)).loss.item())
    assert losses[0] != losses[1]
    assert losses[1] - losses[0] == pytest.approx(losses[2] - losses[1])


def test_metrics(policy, reference):
    method = resolve_method("dpo_reg")
    metrics = preference_step(policy, batch_of(REWARDED, method), method=method, reference=running(reference)).metrics
    for side in ("chosen", "rejected"):
        values = [value for pair in REWARDED for value in pair[f"{side}_token_rewards"]]
        assert metrics[f"treg/reward_{side}"] == pytest.approx(sum(values) / len(values), rel=1e-5)
    assert 0 < metrics["objective/regularizer_share"] < 1
    plain = resolve_method("dpo")
    assert (
        "treg/reward_chosen"
        not in preference_step(policy, collate(PAIRS, plain), method=plain, reference=running(reference)).metrics
    )


@pytest.mark.parametrize("ftx", [0.0, 0.3])
def test_dpo_with_sft_is_dpo_plus_the_mean_likelihood_of_the_chosen(policy, reference, ftx):
    """DPO-SFT in Table 2 is the host's ``pref_ftx``, per token; with the regularizer, both are added."""
    for objective in ("dpo", "dpo_reg"):
        method = resolve_method(objective)
        batch = batch_of(REWARDED, method)
        run = {"method": method, "reference": running(reference)}
        with_sft = preference_step(policy, batch, chosen_nll_weight=ftx, **run).loss
        without = preference_step(policy, batch, **run).loss
        nll = 0.0
        for pair in PAIRS:
            logps = slow_log_probs(policy, pair["chosen_input_ids"], pair["chosen_labels"])
            nll = nll - sum(logps) / len(logps) / 4
        assert_same(policy, with_sft, without + ftx * nll, tolerance=SUMMED)
