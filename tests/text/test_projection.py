"""Projection of scores between tokenizers: preserves totals, is the identity for equal tokens, equals a slow loop."""

import doctest
import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sepo.text.projection
from sepo.errors import SepoError
from sepo.selection.select import select_tokens
from sepo.text.projection import TokenSpans, project_scores, shared_boundaries, token_intervals
from sepo.text.token_texts import TokenTexts
from tests.support import foreign

NAMES = sorted(foreign.MAKERS)
TEXTS = [
    "It has 8 legs.",
    "  Two spaces first, and a tail. \n\n",
    "The family 👨‍👩‍👧‍👦 and the flag 🏳️‍🌈 of 🕷️.",
    "你好，世界。中文没有空格。",
    "noe\u0301l, a\u030angstro\u0308m, क्षि, ค่ำ",
    "ﬁnal ﷺ ½ Ⅳ Å",
    "def f(x):\n\tif x > 1:\n\t\treturn f(x - 1)\r\n\treturn {1: [x]}\r\n",
    "\ttabs\tand\r\nCRLF\r\n",
    "▁ marks ▁▁ and <s> and \ufffd and \u200b\u00a0.",
    "a",
    " ",
    "🕷",
]


def spans_of(name, text):
    """Return the spans of a tokenizer's tokens in a text and of an end of turn, from its own offsets."""
    encoded = foreign.tokenizer(name)(text, add_special_tokens=False, return_offsets_mapping=True)
    return TokenSpans((*encoded["offset_mapping"], (len(text), len(text))), len(encoded["input_ids"]))


def scores_for(spans, seed=0):
    draw = random.Random(seed)
    return [draw.gauss(0, 1) for _ in spans.offsets]


def test_docstring_examples():
    results = doctest.testmod(sepo.text.projection)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", TEXTS)
def test_the_same_spans_give_exactly_the_scores(name, text):
    spans = spans_of(name, text)
    scores = scores_for(spans)
    assert project_scores(scores, spans, TokenSpans(tuple(spans.offsets), spans.end_of_turn)) == scores
    # Also without the shortcut for equal sides: here they differ in the end of turn.
    open_ended = TokenSpans(spans.offsets)
    assert project_scores(scores, TokenSpans((*spans.offsets,), spans.end_of_turn), open_ended)[:-1] == scores[:-1]


@pytest.mark.parametrize(("first", "second"), itertools.permutations(NAMES, 2))
def test_totals_are_preserved_and_the_slow_loop_agrees(first, second):
    for text in TEXTS:
        source, target = spans_of(first, text), spans_of(second, text)
        scores = scores_for(source)
        found = project_scores(scores, source, target)
        assert sum(found) == pytest.approx(sum(scores), abs=1e-9)
        if target.end_of_turn:  # some token of the text
            assert found[-1] == scores[-1]
        slow = foreign.naive_projection(
            scores, (source.offsets, source.end_of_turn), (target.offsets, target.end_of_turn), length=len(text)
        )
        assert found == pytest.approx(slow.tolist(), abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=400)
@given(text=st.text(min_size=1, max_size=60), seed=st.integers(0, 2**16))
def test_totals_of_random_texts_are_preserved_between_all_tokenizers(name, text, seed):
    """2,000 texts in all, each from one tokenizer to the other four."""
    source = spans_of(name, text)
    scores = scores_for(source, seed)
    for other in NAMES:
        target = spans_of(other, text)
        if other != name and len(target.offsets) > 1:
            assert sum(project_scores(scores, source, target)) == pytest.approx(sum(scores), abs=1e-6)


@pytest.mark.parametrize(("first", "second"), itertools.permutations(NAMES, 2))
def test_tokens_whose_boundaries_coincide_are_selected_as_with_one_tokenizer(first, second):
    compared = 0
    for text in TEXTS:
        source, target = spans_of(first, text), spans_of(second, text)
        scores = scores_for(source)
        projected = project_scores(scores, source, target)
        given, taken = token_intervals(source.offsets), token_intervals(target.offsets)
        same = [(given.index(place), index) for index, place in enumerate(taken) if taken.count(place) == 1
                and given.count(place) == 1 and place[1] > place[0]]  # fmt: skip
        gap_free = [(old, new) for old, new in same if projected[new] == scores[old]]
        # The score of a neighbour whose characters the target lacks goes to the nearest token: only such scores move.
        strays = sum(1 for start, end in given if not any(left < end and right > start for left, right in taken))
        assert len(same) - len(gap_free) <= strays
        if not gap_free:
            continue
        old, new = zip(*gap_free, strict=True)
        alone = [torch.tensor([[numbers[index] for index in indices]])
                 for numbers, indices in ((scores, old), (projected, new))]  # fmt: skip
        mask = torch.ones_like(alone[0], dtype=torch.bool)
        selected = [select_tokens(numbers, mask, ratio=0.5, largest=True) for numbers in alone]
        assert torch.equal(*selected)
        compared += len(old)
    assert compared > 20


texts_cut_twice = st.tuples(st.integers(1, 30), st.sets(st.integers(1, 29)), st.sets(st.integers(1, 29)))


def cut(length, places):
    edges = sorted({0, length, *(place for place in places if place < length)})
    return TokenSpans(tuple(itertools.pairwise(edges)))


numbers = st.floats(-100, 100, allow_nan=False)


@settings(max_examples=200)
@given(cuts=texts_cut_twice, data=st.data())
def test_linear_non_negative_and_refinement_is_undone(cuts, data):
    length, first, second = cuts
    source, target = cut(length, first), cut(length, second)
    scores, others = (data.draw(st.lists(numbers, min_size=len(source.offsets), max_size=len(source.offsets)))
                      for _ in range(2))  # fmt: skip
    a = data.draw(numbers)
    mixed = project_scores([a * x + y for x, y in zip(scores, others, strict=True)], source, target)
    apart = [a * x + y for x, y in zip(*(project_scores(s, source, target) for s in (scores, others)), strict=True)]
    assert mixed == pytest.approx(apart, abs=1e-6)
    assert all(x >= 0 for x in project_scores([abs(x) for x in scores], source, target))
    finer = cut(length, first | second)
    assert project_scores(project_scores(scores, source, finer), finer, source) == pytest.approx(scores, abs=1e-9)


def test_bytes_of_one_character_share_it_evenly_and_in_order():
    four = TokenSpans(((0, 1), (1, 2), (1, 2), (1, 2), (1, 2), (2, 3)))
    assert project_scores([1.0, 8.0, 1.0], cut(3, {1, 2}), four) == [1.0, 2.0, 2.0, 2.0, 2.0, 1.0]
    two = TokenSpans(((0, 1), (1, 2), (1, 2), (2, 3)))
    assert project_scores([0.0, 1.0, 2.0, 3.0, 4.0, 0.0], four, two) == [0.0, 3.0, 7.0, 0.0]


def test_tokens_without_characters_go_to_their_place():
    source = TokenSpans(((0, 0), (0, 2), (2, 2), (2, 4), (4, 4), (4, 4)), end_of_turn=5)
    plain = TokenSpans(((0, 2), (2, 4), (4, 4)), end_of_turn=2)
    # A marker before a word goes to that word, a space of the template after the text to the last word.
    assert project_scores([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], source, plain) == [3.0, 28.0, 32.0]
    assert project_scores([1.0, 2.0, 4.0], plain, source) == [0.0, 1.0, 0.0, 2.0, 0.0, 4.0]
    headed = TokenSpans(((0, 0), (0, 0), (0, 4), (4, 4)), end_of_turn=3)
    assert project_scores([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], source, headed) == [1.0, 0.0, 30.0, 32.0]


def test_characters_that_the_target_does_not_have_go_to_the_nearest_token():
    source = cut(9, {1, 3, 6, 8})
    words = TokenSpans(((1, 3), (8, 9)))
    assert project_scores([1.0, 2.0, 4.0, 8.0, 16.0], source, words) == [7.0, 24.0]


def test_end_of_turn_goes_to_end_of_turn_and_is_dropped_where_there_is_none():
    source = TokenSpans(((0, 3), (3, 3), (3, 3)), end_of_turn=1)
    assert project_scores([1.0, 2.0, 4.0], source, TokenSpans(((0, 1), (1, 3), (3, 3)), end_of_turn=2))[2] == 6.0
    assert project_scores([1.0, 2.0, 4.0], source, TokenSpans(((0, 3),))) == [1.0]
    assert project_scores([3.0], TokenSpans(((0, 3),)), source) == [3.0, 0.0, 0.0]
    empty = TokenSpans(((0, 0),), end_of_turn=0)
    assert project_scores([1.0, 2.0, 4.0], source, empty) == [7.0]


def test_shared_boundaries_are_those_inside_the_text():
    assert shared_boundaries(cut(9, {1, 3, 6}), cut(9, {3, 5})) == (1, 2)
    assert shared_boundaries(cut(9, {1}), cut(9, set())) == (0, 0)


def test_wrong_input_raises():
    spans = cut(3, {1})
    with pytest.raises(SepoError, match="3 scores for 2 tokens, expected one per token"):
        project_scores([1.0, 2.0, 3.0], spans, spans)
    with pytest.raises(SepoError, match="no token to project scores onto"):
        project_scores([1.0, 2.0], spans, TokenSpans(()))
    with pytest.raises(SepoError, match="covers the characters 3 to 1"):
        TokenSpans(((3, 1),))
    with pytest.raises(SepoError, match="end_of_turn is 0 of 2 tokens"):
        TokenSpans(((0, 1), (1, 1)), end_of_turn=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", TEXTS)
def test_tokens_of_a_response_are_located_between_any_template_text(name, text):
    """The policy's side: from ids only, with text of the template before and after."""
    words = foreign.tokenizer(name)
    encoded = words(text, add_special_tokens=False)["input_ids"]
    before, after = words.encode("legs", add_special_tokens=False), [words.eos_token_id]
    spans = TokenTexts(words).spans([*before, *encoded, *after], text)
    assert spans is not None
    assert len(spans.offsets) == len(before) + len(encoded) + 1
    assert spans.end_of_turn == len(before) + len(encoded)
    covered = {place for start, end in spans.offsets for place in range(start, end)}
    assert {i for i, letter in enumerate(text) if letter.isascii() and letter.isalnum()} <= covered
    assert covered <= set(range(len(text)))
