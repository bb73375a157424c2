"""Statistics of generated answers, computed by hand."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepo.evaluation.degeneration import degeneration, distinct_ngrams, ngrams, repeated_ngrams

tokens = st.lists(st.integers(0, 4), max_size=12)


def test_a_normal_a_repetitive_and_an_empty_answer():
    found = degeneration([[1, 2, 3, 4], [7, 7, 7, 7, 7, 7], []], [True, False, True])
    assert (found.answers, found.empty, found.median_tokens) == (3, 1, 4.0)
    assert found.tokens.value == pytest.approx(10 / 3)
    assert found.truncated.value == pytest.approx(1 / 3)
    assert found.distinct == {1: 5 / 10, 2: 4 / 8, 3: 3 / 6}
    # 4 of the 5 bigrams of the repetitive answer occur before, none of the normal one; the empty one has no bigram.
    assert {n: share.value for n, share in found.repeated.items()} == pytest.approx({2: 2 / 5, 3: 3 / 8, 4: 1 / 3})


def test_answers_too_short_for_an_ngram_have_no_statistics():
    found = degeneration([[1], []], [True, True])
    assert found.distinct == {1: 1.0, 2: None, 3: None}
    assert found.repeated == {2: None, 3: None, 4: None}
    assert found.truncated.value == 0.0


@given(tokens, st.integers(1, 4))
def test_repetition_counts_earlier_occurrences(ids, n):
    seen, again = set(), 0
    for gram in ngrams(ids, n):
        again += gram in seen
        seen.add(gram)
    total = max(0, len(ids) - n + 1)
    assert repeated_ngrams(ids, n) == (pytest.approx(again / total) if total else None)


@given(st.lists(tokens, max_size=4), st.integers(1, 3))
def test_distinct_counts_over_all_answers_and_never_across_two(answers, n):
    counted = Counter(tuple(ids[i : i + n]) for ids in answers for i in range(len(ids)) if i + n <= len(ids))
    expected = len(counted) / counted.total() if counted else None
    assert distinct_ngrams(answers, n) == expected


@given(st.lists(tokens, min_size=2, max_size=5), st.randoms())
def test_the_order_of_answers_does_not_matter(answers, draw):
    order = list(range(len(answers)))
    draw.shuffle(order)
    ended = [len(ids) % 2 == 0 for ids in answers]
    straight = degeneration(answers, ended)
    moved = degeneration([answers[i] for i in order], [ended[i] for i in order])
    assert moved.distinct == straight.distinct
    assert moved.tokens.value == pytest.approx(straight.tokens.value)
    assert moved.truncated.value == pytest.approx(straight.truncated.value)
