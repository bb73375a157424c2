"""Measures from marks and scores: against sums by hand, by type, over draws, and excluded responses."""

import numpy as np
import pytest

from sepo.credit.data import ErrorSpan, LabelledPair
from sepo.credit.evaluate import MarkedResponse, evaluate
from sepo.credit.measures import auroc, average_precision
from sepo.credit.reading import mark, steps_of
from sepo.errors import SepoError
from sepo.text.chat_encoding import ReadResponse
from sepo.text.projection import TokenSpans


def response(*words):
    """One token per word: "" for a right one, otherwise the types of its errors."""
    kinds = sorted({kind for word in words for kind in word.split()})
    return MarkedResponse(
        np.array([bool(word) for word in words]),
        {kind: np.array([kind in word.split() for word in words]) for kind in kinds},
    )


def evaluated(responses, scores, **options):
    return evaluate(responses, scores, **{"ratio": 0.5, "samples": 50, "seed": 0, **options})


def test_measures_are_means_of_responses_not_of_tokens():
    responses = [response("x", "", "", ""), response("", "x")]
    scores = [np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 1.0])]
    found = evaluated(responses, {"mine": [scores]})
    assert found.scorers["mine"]["auroc"].value == 0.5  # 1 and 0
    assert found.scorers["mine"]["average_precision"].value == 0.75  # 1 and 1/2
    assert found.scorers["mine"]["precision"].value == 0.25  # one of two selected, none of one
    assert found.scorers["mine"]["recall"].value == 0.5
    assert found.best == {"precision": 0.75, "recall": 1.0}
    assert (found.responses, found.tokens, found.marked_tokens) == (2, 6, 2)


def test_responses_without_two_kinds_of_tokens_are_excluded_and_counted():
    responses = [response("", ""), response("x", "x"), response("x", ""), response("x", "x", "x")]
    scores = [np.arange(r.marked.size, dtype=float) for r in responses]
    found = evaluated(responses, {"mine": [scores]})
    assert (found.responses, found.unmarked, found.all_marked) == (1, 1, 2)
    assert found.scorers["mine"]["auroc"].value == 1.0
    with pytest.raises(SepoError, match="none of the 2 rejected responses"):
        evaluated(responses[:2], {"mine": [scores[:2]]})


def test_a_type_is_compared_with_tokens_that_no_type_covers():
    marked = response("a", "", "b", "a b", "")
    scores = np.array([2.0, 1.0, 0.0, 5.0, 4.0])
    found = evaluated([marked, response("", "b")], {"mine": [[scores, np.array([1.0, 0.0])]]}, ratio=0.4)
    of = found.types["mine"]
    assert found.type_responses == {"a": 1, "b": 2}
    plain = [0, 1, 3, 4]
    assert of["a"]["auroc"].value == auroc(scores[plain], np.array([True, False, True, False]))
    assert of["a"]["average_precision"].value == average_precision(scores[plain], np.array([True, False, True, False]))
    assert of["a"]["recall"].value == 0.0  # tokens 2 and 1 are selected
    assert of["b"]["recall"].value == pytest.approx((0.5 + 1.0) / 2)


def test_draws_are_averaged_within_each_response():
    marked = [response("x", "", "")]
    draws = [[np.array([0.0, 1.0, 2.0])], [np.array([2.0, 1.0, 0.0])], [np.array([1.0, 0.0, 2.0])]]
    found = evaluated(marked, {"random": draws}, ratio=0.3)
    assert found.scorers["random"]["auroc"].value == pytest.approx(0.5)
    assert found.scorers["random"]["recall"].value == pytest.approx(1 / 3)


def test_differences_are_paired():
    """Two scorers, one better by the same amount in easy and hard responses: an interval of zero width."""
    easy, hard = response("x", "", "", ""), response("x", "", "", "")
    better = [np.array([0.0, 1, 2, 3]), np.array([2.5, 1, 2, 3])]
    worse = [np.array([1.5, 1, 2, 3]), np.array([4.0, 1, 2, 3])]
    found = evaluated([easy, hard] * 10, {"a": [better * 10], "b": [worse * 10], "c": [better * 10]})
    assert [(first, second) for first, second, _ in found.differences] == [("a", "b"), ("a", "c"), ("b", "c")]
    of = found.differences[0][2]["auroc"]
    assert (of.low, of.value, of.high) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert found.scorers["a"]["auroc"].high > found.scorers["a"]["auroc"].low
    assert found.differences[1][2]["recall"].value == 0


def test_an_oracle_of_the_marks_is_perfect_and_its_opposite_worst():
    rng = np.random.default_rng(0)
    responses = [MarkedResponse(m, {"x": m}) for m in (rng.random((30, 12)) < 0.25) if m.any() and m.sum() < 6]
    perfect = [-r.marked.astype(float) for r in responses]
    found = evaluated(responses, {"yes": [perfect], "no": [[-row for row in perfect]]})
    assert found.scorers["yes"]["auroc"].value == found.scorers["yes"]["recall"].value == 1.0
    assert found.scorers["no"]["auroc"].value == 0.0
    assert found.scorers["yes"]["precision"].value == pytest.approx(found.best["precision"])


@pytest.mark.parametrize("bad", [[0.0, 1.0], [0.0, float("nan"), 1.0]])
def test_invalid_scores_name_the_scorer(bad):
    with pytest.raises(SepoError, match="scorer mine gives"):
        evaluated([response("x", "", "")], {"mine": [[np.array(bad)]]})


def test_tokens_that_are_not_labelled_are_candidates_of_the_first_error_only():
    marked = np.array([False, True, False, False])
    scores = np.array([3.0, 1.0, 0.0, 2.0])
    plain = evaluated([MarkedResponse(marked, {})], {"mine": [[scores]]})
    known = np.array([True, True, False, False])
    cut = evaluated([MarkedResponse(marked, {}, known=known)], {"mine": [[scores]]})
    assert (plain.tokens, cut.tokens, cut.marked_tokens) == (4, 2, 1)
    assert plain.scorers["mine"]["auroc"].value == pytest.approx(2 / 3)
    assert cut.scorers["mine"]["auroc"].value == 1.0
    assert cut.scorers["mine"]["precision"].value == 1.0
    assert plain.scorers["mine"]["first_error"].value == cut.scorers["mine"]["first_error"].value == 0.0
    none = MarkedResponse(np.array([False, True]), {}, known=np.array([False, True]))
    assert not none.measurable


def test_the_auroc_of_the_first_error_is_of_responses_that_begin_right():
    first, second = response("", "x", ""), response("x", "", "")
    scores = [np.array([1.0, 0.0, 5.0]), np.array([0.0, 1.0, 2.0])]
    found = evaluated([first, second], {"mine": [scores], "other": [[-row for row in scores]]})
    assert found.preceded == 1
    assert found.scorers["mine"]["first_error_auroc"].value == 1.0
    assert found.scorers["other"]["first_error_auroc"].value == 0.0
    assert found.scorers["mine"]["first_error"].value == 1.0
    (difference,) = found.differences
    assert difference[2]["first_error_auroc"].value == 1.0
    alone = evaluated([second], {"mine": [scores[1:]]})
    assert "first_error_auroc" not in alone.scorers["mine"]
    assert alone.preceded == 0


def test_languages_are_means_of_their_responses():
    marks = np.array([True, False, False])
    responses = [MarkedResponse(marks, {}, language) for language in ("de", "en", "de", "")]
    scores = [np.array([0.0, 1.0, 2.0]), np.array([2.0, 1.0, 0.0]), np.array([1.0, 0.0, 2.0]), np.zeros(3)]
    found = evaluated(responses, {"mine": [scores]})
    assert found.language_responses == {"de": 2, "en": 1}
    assert found.languages["mine"]["de"]["auroc"].value == 0.75
    assert found.languages["mine"]["en"]["auroc"].value == 0.0
    assert found.scorers["mine"]["auroc"].value == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)


def test_spans_and_steps_are_marked_from_characters():
    text = "one\ntwo\nthree"
    offsets = ((0, 3), (3, 4), (4, 7), (7, 8), (8, 13), (13, 13))
    pair = LabelledPair(
        0, ({"role": "user", "content": "q"},), "", text, (ErrorSpan(4, 7, "x"),), language="en",
        steps=((0, 3), (4, 7), (8, 13)), unlabelled=((7, 13),),
    )  # fmt: skip
    read = ReadResponse([1, 2, 3, 4, 5, 6, 7], 1, TokenSpans(offsets, 5))
    made = mark(pair, read, text_only=False)
    assert made.marked.tolist() == [False, False, True, False, False, False]
    assert made.labelled.tolist() == [True, True, True, False, False, False]  # the end of turn follows unlabelled text
    assert made.language == "en"
    assert mark(pair, read, text_only=True).labelled.tolist() == [True, True, True, False, False]
    assert steps_of(pair, read, None).tolist() == [0, 0, 1, 1, 2, 2]
    assert pair.conversation["answers"] == [text, text]  # without a chosen response
