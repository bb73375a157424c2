"""OTPO's token weights: against plain matrix scaling in float64, by hand, and by their properties."""

import math

import pytest
import torch

from sepo.objectives import transport
from sepo.objectives.transport import transport_weights

SETTINGS = [(1.0, 0.2), (0.1, 0.2), (0.05, 1.0), (0.01, 0.2)]
"""(reg, reg_m): the authors' two, and two that are harder to compute."""

each_setting = pytest.mark.parametrize(("reg", "reg_m"), SETTINGS)


def states(n, m, *, width=16, seed=0, dtype=torch.float64, spread=1.0, common=0.0):
    """Return states [n, H] and [m, H] around a few centers, the first of both equal, as after the same prompt."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    centers = draw(5, width) + common
    rows = centers[torch.randint(5, (n + m,), generator=generator)] + 0.5 * draw(n + m, width)
    rows[n] = rows[0]
    rows = (spread * rows).to(dtype)
    return rows[:n], rows[n:]


def cost_of(chosen, rejected):
    """Return the cost matrix in float64, one distance at a time."""
    cost = torch.stack(
        [torch.stack([(x - y).square().sum().sqrt() for y in rejected.double()]) for x in chosen.double()]
    )
    return cost / max(float(cost.max()), 1.0)


def plain_scaling(chosen, rejected, *, reg, reg_m, iterations=4000):
    """Scale rows and columns of exp(-C / reg) in float64 until nothing changes; the twin of ``transport_weights``."""
    kernel = torch.exp(-cost_of(chosen, rejected) / reg)
    power = reg_m / (reg_m + reg)
    u, v = torch.ones(len(chosen)).double(), torch.ones(len(rejected)).double()
    for _ in range(iterations):
        u = (kernel @ v) ** -power
        v = (kernel.T @ u) ** -power
    plan = u[:, None] * kernel * v
    scale = min(plan.shape) / plan.sum()
    return plan.sum(1) * scale, plan.sum(0) * scale


def both_close(found, expected, *, rtol):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=rtol, atol=0.0)


@each_setting
@pytest.mark.parametrize(("n", "m"), [(7, 5), (1, 4), (30, 41), (12, 12)])
def test_weights_are_those_of_plain_matrix_scaling(reg, reg_m, n, m):
    pair = states(n, m, seed=n)
    both_close(transport_weights(*pair, reg=reg, reg_m=reg_m), plain_scaling(*pair, reg=reg, reg_m=reg_m), rtol=5e-6)


@each_setting
def test_float32_and_half_precision_states(reg, reg_m):
    for dtype in (torch.float32, torch.bfloat16):
        pair = states(30, 41, width=256, dtype=dtype)
        found = transport_weights(*pair, reg=reg, reg_m=reg_m)
        assert found[0].dtype == torch.float32
        # Distances have an error of a few eps of the largest one, whose ratio to reg is up to 100.
        both_close(found, plain_scaling(*pair, reg=reg, reg_m=reg_m), rtol=3e-5)


@each_setting
def test_weights_solve_the_equations_of_the_optimum(reg, reg_m):
    """At the optimum log P_ij = -(C_ij + reg_m log r_i + reg_m log c_j) / reg, with r and c the row and column sums."""
    pair = states(9, 14)
    rows, columns = transport_weights(*pair, reg=reg, reg_m=reg_m)
    plan = torch.exp(-(cost_of(*pair) + reg_m * rows.log()[:, None] + reg_m * columns.log()) / reg)
    plan = plan * 9 / plan.sum()
    both_close((plan.sum(1), plan.sum(0)), (rows, columns), rtol=1e-4)


def test_weights_by_hand():
    # One token against an equal and a distant one, costs 0 and 1: the column sums are (u k_j)^(reg / (reg + reg_m)).
    x = torch.tensor([[0.0, 0.0]]).double()
    y = torch.tensor([[0.0, 0.0], [3.0, 4.0]]).double()
    chosen, rejected = transport_weights(x, y, reg=0.5, reg_m=0.3)
    ratio = math.exp(1 / 0.8)
    assert chosen.tolist() == [1.0]
    assert rejected.tolist() == pytest.approx([ratio / (1 + ratio), 1 / (1 + ratio)], rel=1e-6)


def test_a_cost_of_at_most_one_is_not_scaled():
    x, y = torch.zeros(1, 1).double(), torch.tensor([[0.0], [0.5]]).double()
    _, rejected = transport_weights(x, y, reg=0.5, reg_m=0.3)
    assert float(rejected[0] / rejected[1]) == pytest.approx(math.exp(0.5 / 0.8), rel=1e-6)


@each_setting
def test_weights_sum_to_the_shorter_length(reg, reg_m):
    chosen, rejected = transport_weights(*states(8, 21, dtype=torch.float32), reg=reg, reg_m=reg_m)
    assert chosen.shape == (8,)
    assert rejected.shape == (21,)
    assert float(chosen.sum()) == pytest.approx(8, rel=1e-5)
    assert float(rejected.sum()) == pytest.approx(8, rel=1e-5)
    assert bool((chosen > 0).all() & (rejected > 0).all())


@each_setting
def test_the_largest_ratio_of_two_weights(reg, reg_m):
    """At most exp(1 / (reg + reg_m)): log r_i = reg / (reg + reg_m) log sum_j exp(g_j - C_ij / reg), C in [0, 1]."""
    for seed in range(5):
        for side in transport_weights(*states(30, 20, seed=seed), reg=reg, reg_m=reg_m):
            assert float((side.max() / side.min()).log()) <= 1 / (reg + reg_m) * (1 + 1e-6)
    near_and_far = torch.tensor([[0.0], [1.0]]).double()
    _, ends = transport_weights(near_and_far[:1], near_and_far, reg=reg, reg_m=reg_m)
    assert float((ends[0] / ends[1]).log()) == pytest.approx(1 / (reg + reg_m), rel=1e-6)


@each_setting
def test_the_order_of_tokens_and_of_sides_changes_nothing(reg, reg_m):
    x, y = states(11, 8)
    chosen, rejected = transport_weights(x, y, reg=reg, reg_m=reg_m)
    p, q = torch.randperm(11, generator=torch.Generator().manual_seed(1)), torch.arange(8).flip(0)
    both_close(transport_weights(x[p], y[q], reg=reg, reg_m=reg_m), (chosen[p], rejected[q]), rtol=5e-6)
    both_close(transport_weights(y, x, reg=reg, reg_m=reg_m), (rejected, chosen), rtol=5e-6)


@each_setting
def test_translation_rotation_and_scale_of_the_states_change_nothing(reg, reg_m):
    x, y = states(11, 8)
    expected = transport_weights(x, y, reg=reg, reg_m=reg_m)
    rotation, _ = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(2)).double())
    for pair in ((x + 7, y + 7), (x @ rotation, y @ rotation), (30 * x, 30 * y)):
        both_close(transport_weights(*pair, reg=reg, reg_m=reg_m), expected, rtol=5e-6)


@each_setting
def test_both_sides_of_identical_responses_weigh_the_same(reg, reg_m):
    x, _ = states(13, 1)
    chosen, rejected = transport_weights(x, x, reg=reg, reg_m=reg_m)
    both_close((chosen,), (rejected,), rtol=5e-6)
    if reg > 0.01:  # below, every token is matched with itself alone
        assert float(chosen.max() - chosen.min()) > 1e-4


@pytest.mark.parametrize("reg", [0.1, 1.0])
def test_strict_marginals_are_balanced(reg):
    pair = states(6, 6)
    for side in transport_weights(*pair, reg=reg, reg_m=1e6):
        torch.testing.assert_close(side, torch.ones(6).double(), rtol=1e-4, atol=0.0)
    assert float(transport_weights(*pair, reg=reg, reg_m=0.2)[0].max()) > 1.01
    chosen, rejected = transport_weights(*states(6, 9), reg=reg, reg_m=1e6)
    torch.testing.assert_close(chosen, torch.ones(6).double(), rtol=1e-4, atol=0.0)
    torch.testing.assert_close(rejected, torch.full((9,), 6 / 9).double(), rtol=1e-4, atol=0.0)


def test_a_token_that_resembles_the_other_response_weighs_more():
    x = torch.tensor([[0.0], [10.0], [0.2]])
    y = torch.tensor([[0.1], [0.0], [0.3], [0.2]])
    chosen, _ = transport_weights(x, y, reg=0.1, reg_m=0.2)
    assert float(chosen[1]) < 0.2 * float(min(chosen[0], chosen[2]))


@pytest.mark.parametrize("spread", [1e-4, 1.0, 1e4, 1e15])
@pytest.mark.parametrize("reg", [0.001, 0.01, 1.0, 100.0])
@pytest.mark.parametrize("reg_m", [0.001, 0.2, 1000.0])
def test_weights_are_finite_at_extremes(spread, reg, reg_m):
    for dtype in (torch.float32, torch.bfloat16):
        chosen, rejected = transport_weights(*states(40, 25, spread=spread, dtype=dtype), reg=reg, reg_m=reg_m)
        for side in (chosen, rejected):
            assert bool(torch.isfinite(side).all())
            assert float(side.sum()) == pytest.approx(25, rel=1e-4)


def test_states_around_a_large_common_vector_keep_their_digits():
    pair = states(30, 20, width=64, dtype=torch.float32, common=100.0)
    expected = plain_scaling(*pair, reg=0.1, reg_m=0.2, iterations=200)
    both_close(transport_weights(*pair, reg=0.1, reg_m=0.2), expected, rtol=3e-5)


def test_equal_states_have_no_distance():
    """Not the square root of a rounding error: the first state of both responses is that of the prompt's last token."""
    x, y = states(300, 200, width=512, dtype=torch.float32)
    distances = transport._distances(x, torch.cat([y, x[5:9]]))
    assert distances[0, 0] == 0.0
    assert distances[5:9, -4:].diag().tolist() == [0.0] * 4
    exact = torch.cdist(x[1:5].double(), y[1:].double())
    torch.testing.assert_close(distances[1:5, 1:200].double(), exact, rtol=1e-5, atol=0.0)


@each_setting
def test_further_iterations_change_nothing(reg, reg_m, monkeypatch):
    # Two clusters far from each other: the slowest mixing.
    x = torch.cat([torch.zeros(3, 4), torch.ones(40, 4)]).double()
    y = torch.cat([torch.zeros(30, 4), torch.ones(2, 4)]).double()
    found = transport_weights(x, y, reg=reg, reg_m=reg_m)
    enough = transport._iterations(reg, reg_m / (reg_m + reg))
    monkeypatch.setattr(transport, "_iterations", lambda *_: 10 * enough)
    both_close(found, transport_weights(x, y, reg=reg, reg_m=reg_m), rtol=2e-6)
    monkeypatch.setattr(transport, "_iterations", lambda *_: 1)
    one = transport_weights(x, y, reg=reg, reg_m=reg_m)
    assert float((one[0] / found[0] - 1).abs().max()) > 2e-6


def test_autocast_changes_nothing():
    pair = states(30, 41, width=256, dtype=torch.float32)
    expected = transport_weights(*pair, reg=0.1, reg_m=0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = transport_weights(*pair, reg=0.1, reg_m=0.2)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_weights_carry_no_gradient():
    x, y = states(4, 3)
    for side in transport_weights(x.requires_grad_(), y, reg=0.1, reg_m=0.2):
        assert not side.requires_grad


def test_a_side_without_tokens_has_no_weight():
    x, y = states(4, 3)
    chosen, rejected = transport_weights(x, y[:0], reg=0.1, reg_m=0.2)
    assert chosen.tolist() == [0.0] * 4
    assert rejected.shape == (0,)
