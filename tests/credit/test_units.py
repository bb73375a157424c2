"""Spans and steps as units of a response, against slow twins, and their properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sepo.credit.evaluate import MarkedResponse
from sepo.credit.units import NO_UNIT, of_units, span_units, step_units, unit_scores


@st.composite
def responses(draw):
    count = draw(st.integers(1, 30))
    marked = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    known = marked | np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    other = marked & np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    return MarkedResponse(marked, {"a": marked & ~other, "b": other}, "en", known)


def slow_span_units(response):
    """Token by token: a new unit where the kind changes, and after a whole window of right tokens."""
    kinds = [
        "wrong" if m else "right" if k else "none" for m, k in zip(response.marked, response.labelled, strict=True)
    ]
    spans = "".join({"wrong": "w", "right": "r", "none": "n"}[kind] for kind in kinds)
    errors = spans.replace("r", " ").replace("n", " ").split()
    window = max(1, round(sum(map(len, errors)) / len(errors))) if errors else 1
    units, unit, length = [], -1, 0
    for place, kind in enumerate(kinds):
        same = place > 0 and kinds[place - 1] == kind
        length = length + 1 if same else 1
        if kind == "none":
            units.append(NO_UNIT)
            continue
        if not same or (kind == "right" and length > window):
            unit, length = unit + 1, 1
        units.append(unit)
    return units


@given(responses())
@settings(max_examples=300, deadline=None)
def test_span_units_equal_the_slow_twin(response):
    assert span_units(response).tolist() == slow_span_units(response)


@given(responses(), st.data())
@settings(max_examples=200, deadline=None)
def test_units_have_the_marks_and_the_mean_scores_of_their_tokens(response, data):
    count = response.marked.size
    units = np.array(sorted(data.draw(st.lists(st.integers(0, 6), min_size=count, max_size=count))))
    units[data.draw(st.lists(st.integers(0, count - 1), max_size=count // 2))] = NO_UNIT
    scores = np.array(data.draw(st.lists(st.floats(-10, 10), min_size=count, max_size=count)))
    groups = [np.flatnonzero(units == unit) for unit in sorted(set(units.tolist()) - {NO_UNIT})]
    made = of_units(response, units)
    assert made.marked.tolist() == [bool(response.marked[group].any()) for group in groups]
    assert made.labelled.tolist() == [bool(response.labelled[group].any()) for group in groups]
    for kind in ("a", "b"):
        assert made.types[kind].tolist() == [bool(response.types[kind][group].any()) for group in groups]
    np.testing.assert_allclose(unit_scores(scores, units), [scores[group].mean() for group in groups], atol=1e-12)


@given(responses())
@settings(max_examples=100, deadline=None)
def test_every_error_span_is_one_unit_and_no_unit_is_mixed(response):
    units = span_units(response)
    for unit in set(units.tolist()) - {NO_UNIT}:
        assert len(set(response.marked[units == unit].tolist())) == 1
    runs = np.flatnonzero(np.diff(np.concatenate([[0], response.marked.astype(int)])) == 1)
    assert int(of_units(response, units).marked.sum()) == len(runs)


@pytest.mark.parametrize(
    ("offsets", "steps", "numbers"),
    [
        ([(0, 3), (3, 4), (4, 6), (6, 6)], [(0, 3), (4, 6)], [0, 0, 1, 1]),
        ([(0, 2), (2, 5), (5, 6)], [(0, 3), (4, 6)], [0, 1, 1]),  # a token across the border
        ([(0, 1), (1, 5), (5, 5), (5, 5)], [(0, 1), (2, 3), (4, 5)], [0, 2, 2, 2]),  # a step without a token
    ],
)
def test_tokens_belong_to_the_last_step_that_begins_before_their_end(offsets, steps, numbers):
    assert step_units(offsets, steps) == numbers
