"""Verdicts on answers, and their shares and changes: worked examples, and rows without an expected answer."""

import pytest

from sepo.errors import SepoError
from sepo.evaluation.benchmarks import Question
from sepo.evaluation.correctness import Verdict, correctness, correctness_change, verdicts
from sepo.evaluation.generation import Generated
from sepo.evaluation.prompts import AnsweredTurn, Prompt
from sepo.intervals import share
from sepo.judges import Judge, find_judge

FOUND = [
    Verdict(0, True, True), Verdict(1, True, False), Verdict(2, False, True), Verdict(3, None, False),
    Verdict(4, True, True),
]  # fmt: skip


def answered(text, finished=True):
    return AnsweredTurn([1], Generated((3, 2) if finished else (3,), finished), text)


def asked(index, expected):
    return Prompt(Question(index, ("?",), {}), ({"role": "user", "content": "?"},), expected=expected)


def test_only_answers_with_an_expected_one_are_judged():
    prompts = [asked(3, "8"), asked(5, None), asked(6, ["6", "8"]), asked(9, 8)]
    answers = [answered("It has 8", finished=False), answered("8"), answered("none"), answered("8 legs")]
    assert verdicts(find_judge("contains"), prompts, answers) == [
        Verdict(3, True, False), Verdict(5, None, True), Verdict(6, False, True), Verdict(9, True, True),
    ]  # fmt: skip


def test_a_falsy_answer_is_an_expected_one():
    assert verdicts(find_judge("exact"), [asked(0, 0)], [answered("0")])[0].right is True


def test_a_failing_judge_is_an_error():
    with pytest.raises(SepoError, match="the judge failed on the response 'x'"):
        verdicts(Judge(lambda response, expected: 1 / 0), [asked(0, "a")], [answered("x")])


def test_shares_leave_out_rows_without_an_expected_answer():
    found = correctness(FOUND)
    assert (found.judged, found.without_expected) == (4, 1)
    assert (found.right, found.finished, found.right_and_finished) == (share(3, 4), share(3, 4), share(2, 4))
    nothing = correctness([Verdict(0, None, True)])
    assert (nothing.judged, nothing.without_expected, nothing.right, nothing.finished) == (0, 1, None, None)


def test_the_change_is_paired():
    """The same answers but for one: the interval is that of the differences, and not of two independent shares."""
    after = [Verdict(each.id, each.right, True) for each in FOUND]
    changed = correctness_change(FOUND, after)
    assert (changed["right"].value, changed["right"].low, changed["right"].high) == (0, 0, 0)
    assert changed["finished"].value == changed["right_and_finished"].value == 0.25
    assert changed["finished"].low == 0.0
    assert correctness_change([FOUND[3]], [FOUND[3]])["right"] is None
