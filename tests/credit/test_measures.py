"""Measures of token-level credit against slow twins over pairs and thresholds, and their properties."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sepo.credit.measures import auroc, average_precision, first_error, first_error_auroc, precision_recall
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


def slow_first_error(scores, marked):
    """The chance that a ranking with ties broken at random begins with the first wrong unit."""
    ranked = sorted(range(len(scores)), key=lambda place: scores[place])
    tied = [place for place in ranked if scores[place] == scores[ranked[0]]]
    return tied.count(marked.tolist().index(True)) / len(tied)


def slow_first_error_auroc(scores, marked):
    first = marked.tolist().index(True)
    wins = [(scores[place] > scores[first]) + 0.5 * (scores[place] == scores[first]) for place in range(first)]
    return math.fsum(wins) / len(wins) if wins else math.nan


@given(responses())
@settings(max_examples=300, deadline=None)
def test_first_error_measures_equal_the_slow_twins(response):
    assert first_error(*response) == pytest.approx(slow_first_error(*response), abs=1e-12)
    assert first_error_auroc(*response) == pytest.approx(slow_first_error_auroc(*response), abs=1e-12, nan_ok=True)


@given(responses(), st.lists(st.floats(-5, 5), max_size=5))
@settings(max_examples=100, deadline=None)
def test_what_follows_the_first_error_does_not_change_its_auroc(response, more):
    scores, marked = response
    first = int(marked.argmax()) + 1
    changed = np.concatenate([scores[:first], more])
    marks = np.concatenate([marked[:first], np.ones(len(more), dtype=bool)])
    assert first_error_auroc(changed, marks) == pytest.approx(first_error_auroc(scores, marked), nan_ok=True)


def test_first_error_of_random_scores_is_the_inverse_of_the_length():
    marked = np.array([False, True, False, True])
    draws = np.random.default_rng(0).normal(size=(4000, 4))
    assert np.mean([first_error(scores, marked) for scores in draws]) == pytest.approx(0.25, abs=4 * 0.433 / 4000**0.5)
    assert first_error(np.zeros(4), marked) == 0.25
    assert first_error_auroc(np.zeros(4), marked) == 0.5
    assert math.isnan(first_error_auroc(np.zeros(2), np.array([True, False])))


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


def test_first_error_measures_need_a_marked_unit():
    for measure in (first_error, first_error_auroc):
        with pytest.raises(SepoError, match="0 of 2 tokens are marked, expected at least one"):
            measure(np.array([1.0, 2.0]), np.array([False, False]))


def test_an_empty_selection_is_an_error():
    with pytest.raises(SepoError, match="0 of 2 tokens are selected"):
        precision_recall(np.array([False, False]), np.array([True, False]))
