"""Measures of token-level credit against slow twins over pairs and thresholds, and their properties."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sepo.credit.measures import Bootstrap, auroc, average_precision, precision_recall
from sepo.errors import SepoError


@st.composite
def responses(draw):
    """Scores from few values, so that many are tied, with at least one marked and one unmarked token."""
    count = draw(st.integers(2, 25))
    scores = draw(st.lists(st.sampled_from([-3.5, -1.0, 0.0, 0.25, 2.0, 1e4]), min_size=count, max_size=count))
    marked = draw(st.lists(st.booleans(), min_size=count, max_size=count).filter(lambda m: any(m) and not all(m)))
    return np.array(scores), np.array(marked)


def slow_auroc(scores, marked):
    wins = [
        (wrong < right) + 0.5 * (wrong == right)
        for wrong in scores[marked].tolist()
        for right in scores[~marked].tolist()
    ]
    return math.fsum(wins) / len(wins)


def slow_average_precision(scores, marked):
    """The definition: precision at every distinct threshold, weighted by the recall that is gained there."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist())):
        taken = scores <= threshold
        recall = (taken & marked).sum() / marked.sum()
        total += (recall - before) * (taken & marked).sum() / taken.sum()
        before = recall
    return total


@given(responses())
@settings(max_examples=300, deadline=None)
def test_both_equal_the_slow_twins(response):
    assert auroc(*response) == pytest.approx(slow_auroc(*response), abs=1e-12)
    assert average_precision(*response) == pytest.approx(slow_average_precision(*response), abs=1e-12)


@given(responses(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_order_of_the_tokens_does_not_matter(response, random):
    scores, marked = response
    order = list(range(len(scores)))
    random.shuffle(order)
    assert auroc(scores[order], marked[order]) == pytest.approx(auroc(scores, marked), abs=1e-12)
    assert average_precision(scores[order], marked[order]) == pytest.approx(
        average_precision(scores, marked), abs=1e-12
    )


@given(responses())
@settings(max_examples=100, deadline=None)
def test_only_the_ranking_matters_and_reversing_it_mirrors(response):
    scores, marked = response
    assert auroc(np.arctan(scores) * 7 - 2, marked) == pytest.approx(auroc(scores, marked), abs=1e-12)
    assert auroc(-scores, marked) == pytest.approx(1 - auroc(scores, marked), abs=1e-12)
    assert auroc(scores, ~marked) == pytest.approx(1 - auroc(scores, marked), abs=1e-12)


@given(responses())
@settings(max_examples=50, deadline=None)
def test_equal_scores_are_chance(response):
    _, marked = response
    assert auroc(np.zeros(len(marked)), marked) == 0.5
    assert average_precision(np.zeros(len(marked)), marked) == pytest.approx(marked.mean())


def test_known_values():
    scores, marked = np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, False, True, False])
    assert auroc(scores, marked) == 0.75
    assert average_precision(scores, marked) == pytest.approx((1 + 2 / 3) / 2)
    assert precision_recall(np.array([True, True, False, False]), marked) == (0.5, 0.5)
    assert auroc(np.array([0.1, 0.2], dtype=np.float32), np.array([True, False])) == 1.0


@pytest.mark.parametrize(
    ("scores", "marked", "message"),
    [
        ([1.0, 2.0], [True, True], "2 of 2 tokens are marked"),
        ([1.0, 2.0], [False, False], "0 of 2 tokens are marked"),
        ([1.0, math.nan], [True, False], "1 of 2 scores are not finite"),
        ([1.0, math.inf], [True, False], "not finite"),
        ([1.0], [True, False], "shape"),
        ([1.0, 2.0], [1, 0], "dtype int64"),
    ],
)
def test_invalid_scores_and_marks_are_errors(scores, marked, message):
    for measure in (auroc, average_precision):
        with pytest.raises(SepoError, match=message):
            measure(np.array(scores), np.array(marked))


def test_an_empty_selection_is_an_error():
    with pytest.raises(SepoError, match="0 of 2 tokens are selected"):
        precision_recall(np.array([False, False]), np.array([True, False]))


def test_the_bootstrap_is_seeded_and_shared():
    values = np.random.default_rng(1).normal(size=40)
    first = Bootstrap(40, samples=500, seed=7)
    assert first.mean(values) == Bootstrap(40, samples=500, seed=7).mean(values)
    assert first.mean(values) != Bootstrap(40, samples=500, seed=8).mean(values)
    assert first.mean(values).mean == pytest.approx(values.mean())
    shifted = first.difference(values + 0.3, values)
    assert (shifted.low, shifted.mean, shifted.high) == pytest.approx((0.3, 0.3, 0.3))


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


def test_one_response_has_an_interval_of_zero_width():
    assert Bootstrap(1, samples=10, seed=0).mean(np.array([0.7])) == Bootstrap(1, samples=1, seed=1).mean(
        np.array([0.7])
    )
    with pytest.raises(SepoError, match="0 responses"):
        Bootstrap(0, samples=10, seed=0)
    with pytest.raises(SepoError, match="0 bootstrap samples"):
        Bootstrap(4, samples=0, seed=0)
