"""The table of rows that are left out, cut or changed: its sums, its text and its record."""

import doctest
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sepo.training.row_losses
from sepo.training.row_losses import RowLosses


def test_the_example_of_the_docstring_holds():
    results = doctest.testmod(sepo.training.row_losses)
    assert results.attempted > 3
    assert results.failed == 0


counts = st.lists(st.tuples(st.sampled_from(["dropped", "skipped", "cut", "changed"]), st.integers(0, 9)), max_size=6)


@given(counts, st.integers(0, 50), st.booleans(), st.booleans())
def test_the_numbers_of_a_data_set_add_up(events, used, says_given, says_used):
    losses = RowLosses()
    left_out = sum(rows for what, rows in events if what in ("dropped", "skipped"))
    for what, rows in events:
        losses.add("train", what, "a reason", rows)
    if says_given or not says_used:
        losses.given("train", used + left_out)
    if says_used:
        losses.used("train", used)
    record = losses.record()["train"]
    lost = sum(loss["rows"] for loss in record["losses"] if loss["what"] in ("dropped", "skipped"))
    assert (record["given"], record["used"]) == (used + left_out, used)
    assert record["given"] - lost == record["used"]
    assert all(loss["rows"] for loss in record["losses"])
    assert len(record["losses"]) == len({what for what, rows in events if rows})


def test_rows_that_no_reason_accounts_for_are_listed():
    losses = RowLosses()
    losses.given("train", 10)
    losses.add("train", "skipped", "a reason", 2)
    losses.used("train", 5)
    assert losses.record()["train"]["losses"][-1] == {
        "what": "dropped", "reason": "by the host, see its log above", "rows": 3, "example": "",
    }  # fmt: skip


def test_the_same_reason_is_one_line_with_the_first_example():
    losses = RowLosses()
    losses.add("train", "cut", "long", 2, example="first\n  line " + "x" * 80)
    losses.add("train", "cut", "long", 3, example="second")
    (loss,) = losses.record()["train"]["losses"]
    assert (loss["rows"], loss["example"]) == (5, "..." + "x" * 57)


@pytest.mark.parametrize("lost", [False, True])
def test_the_log_is_one_record_a_warning_only_if_something_is_lost(caplog, lost):
    losses = RowLosses()
    losses.used("train", 3)
    losses.used("eval", 100)
    if lost:
        losses.add("eval", "skipped", "a reason", 12, example="text")
    with caplog.at_level(logging.INFO):
        losses.log()
    (record,) = caplog.records
    if not lost:
        assert record.getMessage() == "rows: 3 of train, 100 of eval, all used as given."
        return
    assert record.levelno == logging.WARNING
    assert record.getMessage().splitlines()[1:] == [
        "data set  rows          reason    example",
        "train        3 given",
        "             3 used",
        "eval       112 given",
        "            12 skipped  a reason  'text'",
        "           100 used",
    ]
