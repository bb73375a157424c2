"""Scores of a data set's rows."""

import logging

import pytest
from datasets import Dataset

from sepo.objectives import resolve_method
from sepo.scoring.user_scores import warn_of_equal_scores


@pytest.mark.parametrize(
    ("chosen", "rejected", "warned"),
    [
        ([[0.0, 1.0], [0.5, 0.0]], [[0.0, -1.0], [-1.0, 0.0]], []),
        ([[0.0, 1.0], [0.5, 0.0]], [[0.0, 0.0], [-1.0, 0.0]], ["1 of 2 rejected responses of train"]),
        ([[1.0, 1.0], [0.0, 0.0, 0.0]], [[0.0, -1.0], [0.0]], ["2 of 2 chosen responses of train"]),
    ],
    ids=["marked", "one side", "equal, and a single token"],
)
def test_responses_without_a_marked_token_are_counted(caplog, chosen, rejected, warned):
    rows = Dataset.from_dict({"chosen_scores": chosen, "rejected_scores": rejected})
    with caplog.at_level(logging.WARNING, logger="sepo"):
        warn_of_equal_scores(rows, resolve_method("sepo", token_scorer="file"), name="train")
        warn_of_equal_scores(rows, resolve_method("critical_dpo"), name="train")  # keeps all tokens and weighs them
    assert [record.getMessage().partition(" have the same score")[0] for record in caplog.records] == warned
