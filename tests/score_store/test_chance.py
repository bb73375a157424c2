"""Scores against noise: what is reported as noise, and on what the comparison does not depend."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepo.score_store.chance import FEWEST_PAIRS, MOST_PAIRS, NORMAL_CARRIED, against_chance, sampled_rows

PAIRS = 300


def lengths(seed=0, pairs=PAIRS, longer=0):
    draws = np.random.default_rng(seed)
    return [(draws.integers(20, 120), draws.integers(20, 120) + longer) for _ in range(pairs)]


def noise(seed, sizes, side, scale=1.0, heavy=False):
    draws = np.random.default_rng(seed + side)
    return [
        scale * (draws.standard_t(2, size=size[side]) if heavy else draws.normal(size=size[side])) for size in sizes
    ]


def pair_of(seed=1, sizes=None, **options):
    sizes = sizes or lengths()
    return noise(seed, sizes, 0, **options), noise(seed, sizes, 1, **options)


def with_errors(rejected, by=3.0):
    """Return scores with three tokens of each response lower, as an oracle that finds an error has."""
    rows = [row.copy() for row in rejected]
    for index, row in enumerate(rows):
        row[index % (len(row) - 3) :][:3] -= by
    return rows


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_noise_is_reported_as_noise(heavy, scale):
    found = against_chance(*pair_of(heavy=heavy, scale=scale))
    assert found.is_noise
    assert found.excess.low <= 0 <= found.excess.high
    assert found.separation == pytest.approx(found.exchanged, rel=0.05)


def test_one_of_twenty_draws_of_noise_is_outside_its_interval():
    sizes = lengths(pairs=60)
    found = [against_chance(*pair_of(seed=2 * seed, sizes=sizes)).excess for seed in range(100)]
    outside = sum(not each.low <= 0 <= each.high for each in found)
    assert outside <= 14  # P(more of 100 at 5 %) < 0.0003


@pytest.mark.parametrize("by", [2.0, 6.0])
def test_scores_that_find_a_few_errors_are_not_noise(by):
    chosen, rejected = pair_of()
    found = against_chance(chosen, with_errors(rejected, by))
    assert not found.is_noise
    assert found.excess.low > 0
    assert found.accuracy.low > 0.5


def test_scores_that_prefer_the_rejected_response_are_reported():
    chosen, rejected = pair_of()
    assert against_chance(with_errors(chosen), rejected).is_noise
    assert against_chance([row - 0.5 for row in chosen], [row + 0.5 for row in rejected]).is_noise


@pytest.mark.parametrize(
    "score",
    [
        lambda size: -np.ones(size),
        lambda size: -np.arange(size) / 10,
        lambda size: np.log1p(np.arange(size)),
    ],
    ids=["one per token", "falling", "rising"],
)
def test_scores_of_the_length_or_position_are_noise_although_they_prefer_the_shorter_response(score):
    sizes = lengths(longer=60)
    found = against_chance(*([score(size[side]) for size in sizes] for side in (0, 1)))
    assert found.is_noise
    if score(2)[0] != score(2)[1]:
        assert not 0.2 < found.accuracy.value < 0.8


def test_few_pairs_are_never_reported():
    chosen, rejected = pair_of(sizes=lengths(pairs=FEWEST_PAIRS))
    assert against_chance(chosen, rejected).is_noise
    assert not against_chance(chosen[1:], rejected[1:]).is_noise


def test_a_pair_worked_by_hand():
    """One of two tokens counts: 4 - -3. Exchanging none, both, the first or the second: 7, 3, 5, 5; an exchange and its
    complement have the mean 5, whatever is drawn."""
    found = against_chance([np.array([4.0, -1.0])], [np.array([2.0, -3.0])])
    assert (found.pairs, found.separation, found.exchanged, found.excess.value) == (1, 7.0, 5.0, 2.0)
    assert found.carried == 0.7
    one = against_chance([np.array([1.0]), np.array([-1.0])], [np.array([-1.0]), np.array([-3.0])])
    assert (one.separation, one.exchanged, one.excess.value) == (2.0, 0.0, 2.0)


def test_marked_spans_are_not_compared_because_any_would_pass():
    sizes = lengths()
    chosen, rejected = ([np.abs(row) for row in noise(1, sizes, side)] for side in (0, 1))
    assert against_chance(chosen, [-row for row in rejected]) is None
    assert against_chance(chosen, rejected).is_noise
    assert against_chance([], []) is None
    assert against_chance([np.empty(0)], [np.ones(3)]) is None


@given(st.integers(0, 1000), st.permutations(range(12)))
def test_the_order_of_the_rows_changes_nothing(seed, order):
    draws = np.random.default_rng(seed)
    rows = [(draws.normal(size=draws.integers(1, 9)), draws.normal(size=draws.integers(1, 9))) for _ in range(12)]
    rows[3] = rows[4]
    found = against_chance(*zip(*rows, strict=True))
    assert against_chance(*zip(*(rows[index] for index in order), strict=True)) == found


def test_numbers_of_another_precision_or_scale_give_the_same_comparison():
    chosen, rejected = pair_of()
    singles = [[row.astype(np.float32) for row in side] for side in (chosen, with_errors(rejected))]
    once = against_chance(*singles)
    scaled = against_chance(*([row * 4 for row in side] for side in singles))  # exact in binary
    assert once.separation * 4 == pytest.approx(scaled.separation)
    assert (once.excess.low * 4, once.carried) == (pytest.approx(scaled.excess.low), pytest.approx(scaled.carried))
    assert once.accuracy == scaled.accuracy


def test_concentration_of_normal_noise_is_the_stated_one():
    draws = np.random.default_rng(0)
    found = against_chance([draws.normal(size=20000)], [draws.normal(size=20000)])
    assert found.carried == pytest.approx(NORMAL_CARRIED, abs=0.005)


@pytest.mark.parametrize("rows", [1, MOST_PAIRS, MOST_PAIRS + 1, 3 * MOST_PAIRS, 10**6])
def test_rows_are_spread_over_the_data_set(rows):
    taken = list(sampled_rows(rows))
    assert len(taken) == len(set(taken)) == min(rows, MOST_PAIRS)
    assert taken == sorted(taken)
    assert (taken[0], taken[-1] < rows) == (0, True)
    assert max(np.diff([*taken, rows])) <= np.ceil(rows / MOST_PAIRS)


def test_the_line_has_the_numbers_and_json_values():
    chosen, rejected = pair_of()
    found = against_chance(chosen, with_errors(rejected))
    assert f"{found.separation:.3g}" in found.text()
    assert "of 300 pairs" in found.text()
    values = found.as_dict()
    assert (values["noise"], values["pairs"], values["excess"]["low"]) == (False, PAIRS, found.excess.low)
