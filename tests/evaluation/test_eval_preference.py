"""Accuracy and margins against a plain loop; intervals; changes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepo.evaluation.divergence import AnswerSums
from sepo.evaluation.estimates import estimate
from sepo.evaluation.preference import accuracy_and_margin, margins, preference, preference_change
from sepo.intervals import Estimate

numbers = st.floats(-500, 0, allow_nan=False)
pairs = st.lists(
    st.tuples(numbers, numbers, numbers, numbers, st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=6
)


def sums(logps, tokens, reference=None):
    kept = None if reference is None else np.array(reference)
    return AnswerSums(np.array(tokens), np.array(logps), kept, kept)


@given(pairs)
def test_measures_equal_a_plain_loop(rows):
    chosen = sums([row[0] for row in rows], [row[4] for row in rows], [row[2] for row in rows])
    rejected = sums([row[1] for row in rows], [row[5] for row in rows], [row[3] for row in rows])
    found = preference(margins(chosen, rejected))
    plain = {"summed": [], "length_normalized": [], "reward": []}
    for win, lose, ref_win, ref_lose, n_win, n_lose in rows:
        plain["summed"].append(win - lose)
        plain["length_normalized"].append(win / n_win - lose / n_lose)
        plain["reward"].append((win - ref_win) - (lose - ref_lose))
    assert list(found) == list(plain)
    for name, values in plain.items():
        assert found[name].accuracy.value == sum(value > 0 for value in values) / len(values)
        assert found[name].margin.value == pytest.approx(math.fsum(values) / len(values), rel=1e-12, abs=1e-10)
        assert found[name].ties == sum(value == 0 for value in values)
        exact = margins(chosen, rejected)[name]
        assert accuracy_and_margin(exact) == (found[name].accuracy.value, pytest.approx(found[name].margin.value))


@given(pairs)
def test_exchanged_sides_have_opposite_margins(rows):
    chosen, rejected = (sums([row[i] for row in rows], [row[4] for row in rows]) for i in (0, 1))
    there, back = preference(margins(chosen, rejected)), preference(margins(rejected, chosen))
    assert list(there) == ["summed", "length_normalized"]  # no reference, no reward
    for name in there:
        both = there[name].accuracy.value + back[name].accuracy.value + there[name].ties / len(rows)
        assert both == pytest.approx(1)
        assert there[name].margin.value == pytest.approx(-back[name].margin.value)


def test_changes_are_paired():
    """Margins that vary between pairs but change by the same amount: the interval is that of the change."""
    before = {"summed": np.array([-3.0, 50.0, 400.0, -0.5]), "length_normalized": np.array([0.0, 1.0, -1.0, 2.0])}
    after = {name: values + 1.0 for name, values in before.items()} | {"reward": np.ones(4)}
    changed = preference_change(before, after)
    assert list(changed) == ["summed", "length_normalized"]
    assert changed["summed"]["margin"] == Estimate(1.0, 1.0, 1.0)
    assert changed["summed"]["accuracy"].value == 0.25  # -0.5 to 0.5
    assert changed["length_normalized"]["accuracy"].value == 0.25  # no longer a tie


def test_intervals_are_those_of_the_normal_approximation_where_it_holds():
    draw = np.random.default_rng(0)
    values, weights = draw.normal(3, 2, 1000), draw.uniform(1, 5, 1000)
    found = estimate(values)
    half = 1.96 * values.std() / 1000**0.5
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    ratio = estimate(values, weights=weights)
    assert ratio.value == pytest.approx(values.sum() / weights.sum())
    half = 1.96 * (values - ratio.value * weights).std() / weights.mean() / 1000**0.5
    assert ratio.high - ratio.low == pytest.approx(2 * half, rel=0.1)


def test_intervals_of_little():
    assert estimate([]) is None
    assert estimate([0.5]) == Estimate(0.5)
    assert estimate([1, 1, 1]) == Estimate(1.0, 1.0, 1.0)
    assert estimate([True, False], seed=4) == estimate([1.0, 0.0], seed=4) == Estimate(0.5, 0.0, 1.0)
