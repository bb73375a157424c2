"""Estimators of token credit against values worked by hand, float64 twins, and their properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepo.errors import SepoError
from sepo.selection.estimators import (
    centered_log_probs,
    centered_scores,
    first_error_scores,
    mean_scores,
    step_mean_scores,
)
from sepo.selection.scores import oracle_scores

ROWS = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=30)


def distributions(seed, tokens=5, vocabulary=7):
    """Return log-probabilities of two models, float64 [tokens, vocabulary]."""
    draw = torch.Generator().manual_seed(seed)
    return (
        torch.log_softmax(3 * torch.randn(tokens, vocabulary, generator=draw, dtype=torch.float64), -1)
        for _ in range(2)
    )


def test_a_mean_of_one_oracle_is_its_scores_and_of_two_their_mean():
    first, second = torch.tensor([1.0, -2.0, 0.5]), np.array([0.0, 2.0, -1.5], dtype=np.float32)
    assert mean_scores([first]).tolist() == first.tolist()
    assert mean_scores([first, second]).tolist() == [0.5, 0.0, -0.5]


@given(st.lists(st.tuples(*[st.floats(-20, 20, width=32)] * 3), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_a_mean_does_not_depend_on_the_order_of_the_oracles(rows):
    members = [torch.tensor(member, dtype=torch.float64) for member in zip(*rows, strict=True)]
    torch.testing.assert_close(mean_scores(members), mean_scores(members[::-1]), rtol=0, atol=1e-12)


def test_a_mean_of_scores_of_other_tokens_is_an_error():
    with pytest.raises(SepoError, match=r"2 oracles with the shapes \[\(2,\), \(3,\)\]"):
        mean_scores([torch.zeros(2), torch.zeros(3)])
    with pytest.raises(SepoError, match="scores of 0 oracles"):
        mean_scores([])


def test_centered_scores_are_worked_by_hand():
    # A base of 1/2, 1/2 and an oracle of 1/4, 3/4: KL(base || oracle) is 1/2 log 2 + 1/2 log 2/3.
    base, oracle = torch.log(torch.tensor([0.5, 0.5])), torch.log(torch.tensor([0.25, 0.75]))
    kl = 0.5 * math.log(4 / 3)
    found = centered_scores(oracle_scores(oracle, base), [kl, kl])
    assert found.tolist() == pytest.approx([math.log(0.5) + kl, math.log(1.5) + kl], abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_centered_scores_have_mean_zero_under_the_base(seed):
    oracle, base = distributions(seed)
    kl = (base.exp() * (base - oracle)).sum(-1)
    every_token = torch.stack([centered_scores(oracle[:, v] - base[:, v], kl) for v in range(base.shape[-1])], -1)
    assert (base.exp() * every_token).sum(-1).abs().max() < 1e-14


@pytest.mark.parametrize("seed", range(5))
def test_centered_log_probabilities_have_mean_zero_under_the_model(seed):
    model, _ = distributions(seed)
    entropy = -(model.exp() * model).sum(-1)
    every_token = torch.stack([centered_log_probs(model[:, v], entropy) for v in range(model.shape[-1])], -1)
    assert (model.exp() * every_token).sum(-1).abs().max() < 1e-14


def test_step_means_are_worked_by_hand():
    found = step_mean_scores([1.0, 3.0, -1.0, 0.0, 0.5], [0, 0, 1, 1, 0])  # a number may return: another step
    assert found.tolist() == [2.0, 2.0, -0.5, -0.5, 0.5]
    assert step_mean_scores([], []).tolist() == []
    with pytest.raises(SepoError, match="1 step numbers for 2 scores"):
        step_mean_scores([1.0, 2.0], [0])


@given(ROWS, st.data())
@settings(max_examples=50, deadline=None)
def test_step_means_are_constant_within_steps_and_keep_the_sum(row, data):
    starts = [True, *data.draw(st.lists(st.booleans(), min_size=len(row) - 1, max_size=len(row) - 1))]
    steps = np.cumsum(starts)
    found = step_mean_scores(np.array(row), steps)
    for number in set(steps):
        assert len(set(found[torch.from_numpy(steps == number)].tolist())) == 1
    assert float(found.sum()) == pytest.approx(math.fsum(row), abs=1e-9)
    torch.testing.assert_close(step_mean_scores(found, steps), found, rtol=0, atol=1e-12)


def test_tokens_after_the_first_error_count_less():
    # The lowest is -4, so -2 is the first error: it keeps its score, and those after it count 1/2, 1/4, 1/8.
    found = first_error_scores([0.5, -1.0, -2.0, -4.0, 1.0, -0.8], share=0.5, decay=0.5)
    assert found.tolist() == pytest.approx([0.5, -1.0, -2.0, -2.0, 0.25, -0.1])
    assert int(found.argmin()) == 2


@given(ROWS)
@settings(max_examples=50, deadline=None)
def test_damped_scores_keep_sign_and_beginning_and_grow_nowhere(row):
    scores = torch.tensor(row, dtype=torch.float64)
    found = first_error_scores(scores)
    assert bool((found.abs() <= scores.abs()).all())
    assert bool((found * scores >= 0).all())
    first = next((t for t, s in enumerate(row) if s <= 0.5 * min(row)), len(row)) if min(row) < 0 else len(row)
    assert found[: first + 1].tolist() == row[: first + 1]
    assert first_error_scores(scores, decay=1.0).tolist() == row
    torch.testing.assert_close(first_error_scores(4 * scores), 4 * found, rtol=1e-12, atol=0)  # without a unit


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.5}, {"decay": 0.0}, {"decay": 1.5}])
def test_a_share_or_decay_out_of_range_is_an_error(wrong):
    with pytest.raises(SepoError, match=r"expected a number in \(0, 1\]"):
        first_error_scores([-1.0], **wrong)
