"""Bootstrap intervals: seeded, shared between statistics, equal to a slow twin and to scipy's. Wilson's intervals."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from sepo.errors import SepoError
from sepo.intervals import Bootstrap, share


def test_the_bootstrap_is_seeded_and_shared():
    values = np.random.default_rng(1).normal(size=40)
    first = Bootstrap(40, samples=500, seed=7)
    assert first.mean(values) == Bootstrap(40, samples=500, seed=7).mean(values)
    assert first.mean(values) != Bootstrap(40, samples=500, seed=8).mean(values)
    assert first.mean(values).value == pytest.approx(values.mean())
    shifted = first.difference(values + 0.3, values)
    assert (shifted.low, shifted.value, shifted.high) == pytest.approx((0.3, 0.3, 0.3))


def test_the_bootstrap_equals_the_slow_twin():
    values = np.array([0.0, 0.2, 0.9, 1.0, 0.4])
    draws = np.random.default_rng(3).integers(5, size=(50, 5))
    means = sorted(float(values[row].mean()) for row in draws)
    estimate = Bootstrap(5, samples=50, seed=3).mean(values)
    assert estimate.low == pytest.approx(np.percentile(means, 2.5))
    assert estimate.high == pytest.approx(np.percentile(means, 97.5))


def test_intervals_have_about_nominal_coverage():
    """Of 300 samples of 60 uniform numbers, the interval contains the true mean in 90 to 99 %."""
    rng = np.random.default_rng(11)
    hits = 0
    for seed in range(300):
        estimate = Bootstrap(60, samples=400, seed=seed).mean(rng.random(60))
        hits += estimate.low <= 0.5 <= estimate.high
    assert 0.90 <= hits / 300 <= 0.99


def test_one_row_has_an_interval_of_zero_width():
    assert Bootstrap(1, samples=10, seed=0).mean(np.array([0.7])) == Bootstrap(1, samples=1, seed=1).mean(
        np.array([0.7])
    )
    with pytest.raises(SepoError, match="of 0 rows"):
        Bootstrap(0, samples=10, seed=0)
    with pytest.raises(SepoError, match="0 bootstrap samples"):
        Bootstrap(4, samples=0, seed=0)


def test_a_ratio_equals_scipys_percentile_bootstrap():
    rng = np.random.default_rng(2)
    values, weights = rng.normal(size=30), rng.random(30) + 0.5
    found = Bootstrap(30, samples=200, seed=5).ratio(values, weights)
    twin = bootstrap(
        (values, weights), lambda x, w, axis: x.sum(axis) / w.sum(axis), paired=True, vectorized=True,
        confidence_level=0.95, n_resamples=200, method="percentile", rng=np.random.default_rng(5),
    ).confidence_interval  # fmt: skip
    assert (found.low, found.high) == pytest.approx((twin.low, twin.high), rel=1e-12)


def test_batches_of_draws_are_the_same_draws(monkeypatch):
    values = np.random.default_rng(3).normal(size=50)
    whole = Bootstrap(50, samples=40, seed=1).mean(values)
    monkeypatch.setattr("sepo.intervals._DRAWN_AT_ONCE", 350)
    assert Bootstrap(50, samples=40, seed=1).mean(values) == whole


def test_wilsons_interval_of_a_share():
    """Its ends are the shares p for which the observed one is z standard errors of p away."""
    z = NormalDist().inv_cdf(0.975)
    for successes, rows in ((1, 1), (0, 1), (3, 10), (10, 10), (0, 50), (499, 1000)):
        found = share(successes, rows)
        assert found.value == successes / rows
        assert 0 <= found.low <= found.value <= found.high <= 1
        assert found.low < found.high
        for end in {found.low, found.high} - {0.0, 1.0}:
            assert (found.value - end) ** 2 == pytest.approx(z * z * end * (1 - end) / rows)


@given(st.integers(1, 200).flatmap(lambda rows: st.tuples(st.integers(0, rows), st.just(rows))))
def test_wilsons_interval_is_symmetric_and_narrows_with_rows(drawn):
    successes, rows = drawn
    found, other = share(successes, rows), share(rows - successes, rows)
    assert (found.low, found.high) == (pytest.approx(1 - other.high), pytest.approx(1 - other.low))
    larger = share(4 * successes, 4 * rows)
    assert larger.high - larger.low < found.high - found.low
