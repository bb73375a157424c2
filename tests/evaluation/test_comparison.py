"""Comparison of policies: measures by row, means over seeds, paired differences."""

import numpy as np
import pytest

from sepo.evaluation.comparison import (
    MEASURES,
    Measured,
    best,
    paired_difference,
    row_measures,
    rows_digest,
    run_means,
    seed_mean,
)
from sepo.evaluation.correctness import Verdict
from sepo.evaluation.degeneration import degeneration
from sepo.evaluation.generation import Generated
from sepo.evaluation.preference import preference
from sepo.evaluation.prompts import AnsweredTurn
from sepo.evaluation.run import Divergence, HeldOut, PolicyResult, SetResult
from sepo.forward.sequences import ScoredSequence
from sepo.intervals import Bootstrap, Estimate, share


def result(*, reference=True, verdicts=True):
    margins = {"summed": np.array([1.0, -2.0]), "length_normalized": np.array([-0.5, 0.0])}
    if reference:
        margins["reward"] = np.array([0.5, 3.0])
    kl = Divergence(Estimate(0.1), Estimate(1.0), 9, np.array([2.0, 0.0])) if reference else None
    answers = [[AnsweredTurn([1], Generated(ids, ended), "x")] for ids, ended in (((3, 3, 3, 2), True), ((5,), False))]
    ids = [turn.generated.answer for (turn,) in answers]
    judged = [Verdict(0, True, True), Verdict(1, None, False)] if verdicts else None
    part = SetResult(answers, degeneration(ids, [True, False]), kl, judged)
    sides = None if kl is None else {"chosen": kl, "rejected": kl}
    return PolicyResult(margins, preference(margins), {}, sides, {"heldout": part}, {})


def test_measures_by_row():
    found = row_measures(result(), answers="heldout")
    assert set(found) == set(MEASURES)
    assert (found["accuracy"], found["margin"]) == ([1.0, 1.0], [0.5, 3.0])
    assert (found["accuracy_summed"], found["accuracy_length_normalized"]) == ([1.0, 0.0], [0.0, 0.0])  # a tie is wrong
    assert found["kl_chosen"] == found["kl_answers"] == [2.0, 0.0]
    assert (found["tokens"], found["finished"]) == ([3.0, 1.0], [1.0, 0.0])  # without the end of turn
    assert found["repeated_2"] == [0.5, None]
    assert found["right"] == found["right_and_finished"] == [1.0, None]
    without = row_measures(result(reference=False, verdicts=False), answers="others")
    assert set(without) == {f"{name}_{by}" for name in ("accuracy", "margin") for by in ("summed", "length_normalized")}


def measured(values, digest="same"):
    return Measured({"accuracy": values}, digest)


def test_a_mean_is_over_seeds_and_its_interval_over_rows():
    runs = [measured([1.0, 0.0, 1.0, None]), measured([1.0, 1.0, 1.0, None])]
    assert [run_means(run)["accuracy"] for run in runs] == [pytest.approx(2 / 3), 1.0]
    expected = Bootstrap(3, samples=2000, seed=0).mean([1.0, 0.5, 1.0])
    found = seed_mean(runs)["accuracy"]
    assert (found["value"], found["low"], found["high"]) == (expected.value, expected.low, expected.high)
    assert seed_mean([measured([None])]) == {"accuracy": None}
    alone = Measured({"right": [1.0] * 8 + [0.0, 0.0, None]}, "same")
    wilson = share(8, 10)
    assert seed_mean([alone])["right"] == {"value": 0.8, "low": wilson.low, "high": wilson.high}


def test_differences_are_paired_by_row():
    hard = np.random.default_rng(0).normal(size=200)
    runs, baseline = [measured(list(hard + 0.1))], [measured(list(hard)), measured(list(hard))]
    found = paired_difference(runs, baseline)["accuracy"]
    assert found["value"] == pytest.approx(0.1)
    assert found["high"] - found["low"] < 1e-9  # the rows differ by far more
    partial = paired_difference([measured([1.0, None, 1.0])], [measured([0.0, 1.0, None])])["accuracy"]
    assert partial == {"value": 1.0, "low": None, "high": None}  # the only row that both have
    assert paired_difference(runs, [measured(list(hard), "other")]) is None


def test_the_digest_is_of_the_token_ids_in_order():
    def of(*rows):
        sequences = [ScoredSequence(list(ids), start) for ids, start in rows]
        return rows_digest(HeldOut("name", sequences, sequences))

    assert of(((1, 2, 3), 1), ((4, 5), 1)) == of(((1, 2, 3), 1), ((4, 5), 1))
    assert len({of(((1, 2, 3), 1), ((4, 5), 1)), of(((4, 5), 1), ((1, 2, 3), 1)), of(((1, 2, 3), 2), ((4, 5), 1))}) == 3


def test_the_first_of_equal_candidates_is_chosen():
    assert best({"a": [0.1], "b": [0.2, 0.4], "c": [0.3]}) == "b"
    assert best({"a": [0.1 + 0.2], "b": [0.3]}) == "a"  # equal but for rounding
    assert best({"b": [0.3], "a": [0.1 + 0.2]}) == "b"
