"""The rows of the heat map: their contents, and that they fit the budget."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sepo.report.heat_map import heat_map, mean_margin, side_by_side
from sepo.report.subject import Pair, Side, Subject
from tests.support.subjects import HOSTILE, demo_subject, hostile_subject

EVERYTHING = 10**9


def side(tokens, scores, selected):
    return Side(tuple(tokens), np.array(scores, np.float32), np.array(selected, bool))


def pair(row, *, scores=(3.0, 1.0, -2.0), kept=(1, 0, 0), step=None, prompt="p"):
    return Pair(row, prompt, side("abc", scores, kept), side("xyz", scores, kept[::-1]), step)


def subject(pairs, **changed):
    return Subject(**{"name": "s", "path": Path("s"), "kind": "store", "pairs": pairs, **changed})


def test_a_row_has_tokens_scores_and_selection():
    shown = heat_map([subject([pair(7)], rows=9)], budget=EVERYTHING)
    (row,) = json.loads(shown.text)["rows"]
    assert (shown.shown, shown.sampled, shown.rows) == (1, 1, 9)
    assert row == {
        "row": 7,
        "prompt": "p",
        "by": [
            {
                "margin": 5.0,
                "chosen": {"t": ["a", "b", "c"], "s": [3.0, 1.0, -2.0], "k": "100", "more": 0},
                "rejected": {"t": ["x", "y", "z"], "s": [3.0, 1.0, -2.0], "k": "001", "more": 0},
            }
        ],
    }


def test_weights_are_beside_the_scores_with_their_effective_number():
    weighed = replace(side("abc", (1.0, 2.0, 3.0), (1, 1, 0)), weights=np.array([3.0, -1.0, 0.0]))
    shown = heat_map([subject([Pair(0, "p", weighed, side("xyz", (1, 2, 3), (1, 0, 0)))])], budget=EVERYTHING)
    chosen, rejected = (json.loads(shown.text)["rows"][0]["by"][0][name] for name in ("chosen", "rejected"))
    assert (chosen["k"], chosen["w"], chosen["e"]) == ("110", [3.0, -1.0, 0.0], 0.4)  # (3 - 1)^2 / (9 + 1)
    assert not {"w", "e"} & set(rejected)
    none = replace(weighed, weights=np.zeros(3), selected=np.zeros(3, bool))
    assert (none.effective, replace(none, weights=np.full(3, 0.5)).effective) == (0.0, 3.0)


def test_tokens_of_the_chat_template_are_marked():
    template = replace(side("abc", (1.0, 2.0, 3.0), (0, 1, 0)), candidates=np.array([True, True, False]))
    shown = heat_map([subject([Pair(0, "p", template, template)])], budget=EVERYTHING)
    assert json.loads(shown.text)["rows"][0]["by"][0]["chosen"]["k"] == "01-"


def test_margin_is_between_the_means_of_selected_finite_scores():
    chosen = side("abcd", [4, 2, np.nan, 9], [1, 1, 1, 0])
    assert mean_margin(Pair(0, "", chosen, side("ab", [-5, 7], [1, 0]))) == 8.0
    assert mean_margin(Pair(0, "", chosen, side("ab", [-5, 7], [0, 0]))) is None
    assert mean_margin(Pair(0, "", chosen, side("ab", [np.inf, 7], [1, 0]))) is None


def test_scores_that_are_not_finite_are_valid_json():
    shown = heat_map([subject([pair(0, scores=(np.nan, np.inf, -np.inf))])], budget=EVERYTHING)
    assert "NaN" not in shown.text
    assert "Infinity" not in shown.text
    data = json.loads(shown.text)
    assert data["rows"][0]["by"][0]["chosen"]["s"] == [None, "inf", "-inf"]
    assert data["subjects"] == [{"name": "s", "limit": 1.0, "scored": True}]
    unscored = heat_map([subject([pair(0, scores=(np.nan,) * 3)])], budget=EVERYTHING)
    assert json.loads(unscored.text)["subjects"][0]["scored"] is False


def test_the_color_scale_covers_nearly_all_scores():
    scores = (*np.linspace(-1, 1, 99), 1000.0)
    one = Pair(0, "", side("a" * 100, scores, [1] * 100), side("b" * 100, scores, [1] * 100))
    limit = json.loads(heat_map([subject([one])], budget=EVERYTHING).text)["subjects"][0]["limit"]
    assert 0.9 < limit < 1.1


def test_hostile_text_stays_text_inside_a_script_element():
    shown = heat_map([hostile_subject()], budget=EVERYTHING)
    assert not set("<>&\u2028\u2029") & set(shown.text)
    shown.text.encode()
    rows = json.loads(shown.text)["rows"]
    assert rows[0]["prompt"] == HOSTILE[0]
    assert rows[0]["by"][0]["chosen"]["t"][:4] == list(HOSTILE[:4])
    assert "⟨U+202E⟩" in rows[7]["prompt"]
    assert rows[-1]["row"] == -1


def test_rows_of_two_subjects_are_matched_by_their_number():
    first = subject([pair(4), pair(2)])
    second = subject([pair(2, kept=(1, 1, 0)), pair(9)], name="t")
    matched = side_by_side([first, second])
    assert [[one and one.row for one in pairs] for pairs in matched] == [[2, 2], [4, None], [None, 9]]
    rows = json.loads(heat_map([first, second], budget=EVERYTHING).text)["rows"]
    assert rows[0]["by"][1]["chosen"]["t"] == 0  # the same tokens as the first of them
    assert rows[0]["agreement"] == 0.5  # two of four tokens that any selects
    assert rows[1]["by"][1] is None
    assert "agreement" not in rows[1]


def test_other_prompts_and_tokens_of_the_same_row_are_shown_too():
    other = Pair(1, "another", side(["ab", "c"], [1, 2], [1, 0]), side("xyz", [1, 2, 3], [1, 0, 0]))
    (row,) = json.loads(heat_map([subject([pair(1)]), subject([other])], budget=EVERYTHING).text)["rows"]
    assert (row["prompt"], row["by"][1]["prompt"]) == ("p", "another")
    assert row["by"][1]["chosen"]["t"] == ["ab", "c"]
    assert row["by"][1]["rejected"]["t"] == 0
    assert "agreement" not in row


def test_a_row_that_was_recorded_twice_is_two_in_the_order_of_the_steps():
    live = subject([pair(3, step=20), pair(3, step=5), pair(1, step=9)])
    later = subject([pair(3, step=6)])
    matched = side_by_side([live, later])
    assert [[one and (one.row, one.step) for one in pairs] for pairs in matched] == [
        [(1, 9), None],
        [(3, 5), (3, 6)],
        [(3, 20), None],
    ]
    assert json.loads(heat_map([live], budget=EVERYTHING).text)["rows"][0]["by"][0]["step"] == 9


def test_rows_without_a_number_are_never_matched_and_come_last():
    matched = side_by_side([subject([pair(-1), pair(8), pair(-1)]), subject([pair(-1)])])
    assert [[one and one.row for one in pairs] for pairs in matched] == [
        [8, None],
        [-1, None],
        [-1, None],
        [None, -1],
    ]


@settings(max_examples=40)
@given(lengths=st.lists(st.integers(0, 300), min_size=1, max_size=40), budget=st.integers(60, 8000))
def test_as_many_rows_as_fit_are_spread_over_all(lengths, budget):
    one = subject([pair(row, prompt="x" * length) for row, length in enumerate(lengths)])
    shown = heat_map([one], budget=budget)
    rows = [row["row"] for row in json.loads(shown.text)["rows"]]
    assert len(shown.text) <= max(budget, 70)
    assert len(rows) == shown.shown
    assert rows == sorted(set(rows))
    if len(rows) > 1:
        assert max(np.diff([*rows, len(lengths)])) <= -(-len(lengths) // len(rows))
    if shown.shown == 0:
        assert len(heat_map([subject(one.pairs[:1])], budget=EVERYTHING).text) > budget


def test_long_texts_are_truncated_and_marked():
    words = replace(side(["w" * 500] * 9_000, [1] * 9_000, [1] * 9_000), weights=np.ones(9_000))
    long = Pair(0, "p" * 50_000, words, side("x", [1], [1]))
    (row,) = json.loads(heat_map([subject([long])], budget=EVERYTHING).text)["rows"]
    assert row["prompt"].endswith("… (50,000 characters)")
    chosen = row["by"][0]["chosen"]
    assert (len(chosen["t"]), len(chosen["s"]), len(chosen["k"]), chosen["more"]) == (4000, 4000, 4000, 5000)
    assert len(chosen["w"]) == 4000
    assert chosen["t"][0].endswith("… (500 characters)")


@pytest.mark.parametrize("pairs", [[], [pair(0)]])
def test_nothing_fits_or_there_is_nothing(pairs):
    assert json.loads(heat_map([subject(pairs)], budget=10).text)["rows"] == []


def test_the_demo_like_subject_has_all_its_rows():
    one = demo_subject(rows=30)
    rows = json.loads(heat_map([one], budget=EVERYTHING).text)["rows"]
    assert [row["row"] for row in rows] == [pair.row for pair in one.pairs]
    for row, known in zip(rows, one.pairs, strict=True):
        np.testing.assert_allclose(row["by"][0]["rejected"]["s"], known.rejected.scores, rtol=1e-3)
        assert [flag == "1" for flag in row["by"][0]["rejected"]["k"]] == known.rejected.selected.tolist()
