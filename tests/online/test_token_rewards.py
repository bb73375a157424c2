"""Token rewards, advantages and loss of RTO: values worked by hand, a slow twin in float64, and properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepo.errors import SepoError
from sepo.online.advantages import returns_to_go, token_advantages
from sepo.online.loss import clipped_loss, divergence, token_weights
from sepo.online.selection import select_sampled
from sepo.online.token_rewards import dense_rewards


def mask_of(lengths, width=None):
    width = max(lengths) if width is None else width
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(-1)


def a_group(seed=0, lengths=(3, 5, 1, 4), beta1=0.7, beta2=0.3, clip=None):
    generator = torch.Generator().manual_seed(seed)
    mask = mask_of(lengths)
    oracle, policy, reference = torch.randn(3, *mask.shape, generator=generator, dtype=torch.float64)
    rewards = torch.randn(len(lengths), generator=generator, dtype=torch.float64)
    dense = dense_rewards(
        mask, oracle_log_ratios=oracle, beta1=beta1, clip=clip, policy_logps=policy, ref_logps=reference, beta2=beta2
    )
    return mask, oracle, policy, reference, rewards, dense


def loop(lengths, oracle, policy, reference, rewards, *, beta1, beta2, clip, scale):
    """Compute dense rewards and advantages of one group with plain floats."""
    dense = [
        [
            max(-clip, min(clip, beta1 * float(oracle[i, t]))) - beta2 * (float(policy[i, t]) - float(reference[i, t]))
            for t in range(length)
        ]
        for i, length in enumerate(lengths)
    ]
    with_judge = [[*row[:-1], row[-1] + float(rewards[i])] for i, row in enumerate(dense)]
    ahead = [[sum(row[t:]) for t in range(len(row))] for row in dense]
    returns = [[sum(row[t:]) for t in range(len(row))] for row in with_judge]
    mean_reward = sum(map(float, rewards)) / len(lengths)
    totals = [row[0] for row in returns]
    mean_total = sum(totals) / len(totals)
    spread = math.sqrt(sum((total - mean_total) ** 2 for total in totals) / (len(totals) - 1))
    divisor = spread + 1e-4 if scale != "none" else 1.0
    advantages = []
    for row in returns:
        found = []
        for t, value in enumerate(row):
            alive = [other[t] for other in ahead if t < len(other)]
            found.append((value - mean_reward - sum(alive) / len(alive)) / divisor)
        advantages.append(found)
    return dense, advantages


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("clip", [math.inf, 0.4])
def test_one_group_equals_a_loop_in_float64(scale, clip):
    lengths = (3, 5, 1, 4)
    limit = None if clip == math.inf else clip
    mask, oracle, policy, reference, rewards, dense = a_group(clip=limit)
    by_loop, advantages = loop(
        lengths, oracle, policy, reference, rewards, beta1=0.7, beta2=0.3, clip=clip, scale=scale
    )
    found = token_advantages(rewards, dense, mask, group=4, scale=scale)
    for i, length in enumerate(lengths):
        torch.testing.assert_close(dense[i, :length], torch.tensor(by_loop[i], dtype=torch.float64))
        torch.testing.assert_close(found[i, :length], torch.tensor(advantages[i], dtype=torch.float64))
        assert not found[i, length:].any()
        assert not dense[i, length:].any()


def test_values_worked_by_hand():
    mask = mask_of([2, 1])
    dense = dense_rewards(mask, oracle_log_ratios=torch.tensor([[1.0, 3.0], [2.0, 9.0]]), beta1=0.5)
    assert dense.tolist() == [[0.5, 1.5], [1.0, 0.0]]
    # returns 3, 2.5 and 1; the rewards' mean 0.5; the dense part's means 1.5 at the first token, 1.5 at the second
    assert token_advantages(torch.tensor([1.0, 0.0]), dense, mask, group=2, scale="none").tolist() == [
        [1.0, 0.5], [-1.0, 0.0]
    ]  # fmt: skip


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_without_dense_rewards_the_advantages_are_those_of_grpo(scale):
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    mask = mask_of([4, 1, 3, 2, 2, 4])
    found = token_advantages(rewards, torch.zeros(mask.shape), mask, group=3, scale=scale)
    grouped = rewards.view(2, 3)
    expected = (grouped - grouped.mean(1, keepdim=True)).flatten()
    if scale == "group":
        expected = expected / (grouped.std(1).repeat_interleave(3) + 1e-4)
    elif scale == "batch":
        expected = expected / (rewards.std() + 1e-4)
    assert torch.equal(found, expected.unsqueeze(-1) * mask)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=4, max_size=4),
    order=st.permutations(range(4)),
    padding=st.integers(0, 4),
    seed=st.integers(0, 1000),
    scale=st.sampled_from(["group", "batch", "none"]),
)
def test_neither_padding_nor_the_order_of_a_group_changes_an_advantage(lengths, order, padding, seed, scale):
    mask, _, _, _, rewards, dense = a_group(seed, tuple(lengths))
    found = token_advantages(rewards, dense, mask, group=4, scale=scale)
    wider = torch.nn.functional.pad(dense, (0, padding)), torch.nn.functional.pad(mask, (0, padding))
    assert torch.equal(token_advantages(rewards, *wider, group=4, scale=scale)[:, : mask.shape[1]], found)
    order = list(order)
    again = token_advantages(rewards[order], dense[order], mask[order], group=4, scale=scale)
    torch.testing.assert_close(again, found[order])


def test_values_outside_the_mask_are_not_read():
    mask = mask_of([1, 2])
    log_ratios = torch.tensor([[1.0, math.nan], [2.0, 3.0]])
    assert dense_rewards(mask, oracle_log_ratios=log_ratios, beta1=1.0).tolist() == [[1.0, 0.0], [2.0, 3.0]]
    with pytest.raises(SepoError, match="oracle_log_ratios is nan at token 1 of response 0, expected a finite number"):
        dense_rewards(mask_of([2, 2]), oracle_log_ratios=log_ratios, beta1=1.0)
    with pytest.raises(SepoError, match=r"policy_logps of the responses are missing, expected one number for each of"):
        dense_rewards(mask, beta2=1.0)


def test_the_returns():
    assert returns_to_go(torch.tensor([[1.0, 2.0, 4.0]])).tolist() == [[7.0, 6.0, 4.0]]


def test_a_ratio_beyond_the_clip_has_no_gradient_in_its_direction():
    logps = torch.log(torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.0]])).requires_grad_()
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0, 2.0]])
    found = clipped_loss(logps, torch.zeros(1, 5), advantages, epsilon=0.2)
    torch.testing.assert_close(found.values, torch.tensor([[-1.2, 1.5, -0.5, 0.8, -2.0]]))
    found.values.sum().backward()
    torch.testing.assert_close(logps.grad, torch.tensor([[0.0, 1.5, -0.5, 0.0, -2.0]]))
    assert found.high.tolist() == [[True, False, False, False, False]]
    assert found.low.tolist() == [[False, False, False, True, False]]


def test_the_divergence_of_equal_policies_is_zero_and_positive_otherwise():
    values = divergence(torch.tensor([0.0, -1.0, -2.0]), torch.tensor([0.0, -2.0, -1.0]))
    torch.testing.assert_close(values, torch.tensor([0.0, math.exp(-1.0), math.e - 2.0]))


def test_weights_of_each_loss_type():
    mask = mask_of([1, 3])
    common = {"accumulation": 2, "max_tokens": 5, "batch_tokens": torch.tensor(8)}
    weights = {name: token_weights(mask, name, **common) for name in ("grpo", "bnpo", "dr_grpo", "dapo")}
    assert weights["grpo"].tolist() == [[1 / 4, 0.0, 0.0], pytest.approx([1 / 12] * 3)]
    assert weights["bnpo"].tolist() == [[1 / 8, 0.0, 0.0], [1 / 8] * 3]
    assert weights["dr_grpo"].tolist() == [[pytest.approx(1 / 20), 0.0, 0.0], pytest.approx([1 / 20] * 3)]
    assert weights["dapo"].tolist() == [[1 / 8, 0.0, 0.0], [1 / 8] * 3]
    with pytest.raises(SepoError, match="loss type is 'ppo', expected one of grpo, bnpo, dr_grpo, dapo"):
        token_weights(mask, "ppo", **common)


def test_scores_that_are_rewards_select_the_lowest_in_worse_responses():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.1, 0.9, 0.5]])
    mask = mask_of([3, 3])
    both = select_sampled(scores, mask, ratio=0.34, rule="floor")
    assert both.tolist() == [[False, True, False]] * 2
    better = torch.tensor([True, False])
    assert select_sampled(scores, mask, ratio=0.34, rule="floor", better=better).tolist() == [
        [False, True, False], [True, False, False]
    ]  # fmt: skip
