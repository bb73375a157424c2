"""The selection in the host's batch: aligned with the labels, with an error if counts disagree."""

import doctest

import pytest
import torch

import sepo.training.selection_columns
from sepo.errors import SepoError
from sepo.objectives import resolve_method
from sepo.training import SELECTION, STEPS, SelectionCollator, StepCollator


def pad(rows):
    """Collate like a host's pairwise collator: chosen rows first, padded on the right."""
    labels = [row["chosen_labels"] for row in rows] + [row["rejected_labels"] for row in rows]
    width = max(map(len, labels)) + 2
    return {"labels": torch.tensor([row + [-100] * (width - len(row)) for row in labels]), "other": "kept"}


def feature(chosen_labels, rejected_labels, chosen_scores, rejected_scores):
    return {
        "chosen_labels": chosen_labels,
        "rejected_labels": rejected_labels,
        "chosen_scores": chosen_scores,
        "rejected_scores": rejected_scores,
    }


def collate(*features, **ratios):
    return SelectionCollator(pad, method=resolve_method("sepo", **ratios))(features)


def test_docstring_examples():
    results = doctest.testmod(sepo.training.selection_columns)
    assert results.attempted > 0
    assert results.failed == 0


def test_selection_is_bool_and_aligned_with_the_labels():
    batch = collate(
        feature([-100, -100, 5, 6, 7], [-100, 8, 9], [0.1, 0.9, 0.5], [0.3, -0.3]),
        feature([-100, 5, -100, 6], [-100, -100, -100, 7, 8, 9], [0.2, 0.1], [0.0, -1.0, 1.0]),  # a hole in a response
        chosen_ratio=0.5,
        rejected_ratio=0.5,
    )
    # Two rows of highest chosen scores, then two of lowest rejected ones.
    chosen = [[0, 0, 0, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0]]
    rejected = [[0, 0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0, 0]]
    assert batch[SELECTION].dtype == torch.bool
    assert batch[SELECTION].int().tolist() == chosen + rejected
    assert batch["other"] == "kept"


def test_ratio_one_selects_every_scorable_label():
    batch = collate(
        feature([-100, 5, 6], [-100, 7], [0.0, 0.0], [0.0]),
        feature([5, 6], [-100, -100, 7], [0.0], [0.0]),
        chosen_ratio=1.0,
        rejected_ratio=1.0,
    )
    expected = batch["labels"] != -100
    expected[:, 0] = False
    assert torch.equal(batch[SELECTION], expected)


def test_the_first_token_of_a_row_cannot_be_scored():
    """A response without a prompt: position 0 has no predecessor, so its label has no score and is not selected."""
    batch = collate(feature([5, 6, 7], [8, 9], [0.1, 0.9], [0.5]), chosen_ratio=0.5)
    assert batch[SELECTION].int().tolist() == [[0, 0, 1, 0, 0], [0, 1, 0, 0, 0]]
    assert batch["labels"][0, 0] == 5  # the host's labels are not changed


@pytest.mark.parametrize(
    ("chosen_scores", "rejected_scores", "message"),
    [
        ([0.1], [0.2], "1 scores for a chosen response of 2 tokens"),
        ([0.1, 0.2], [0.1, 0.2], "2 scores for a rejected response of 1 tokens"),
        ([0.1, 0.2], [], "0 scores for a rejected response of 1 tokens"),
    ],
)
def test_scores_of_other_data_raise(chosen_scores, rejected_scores, message):
    with pytest.raises(SepoError, match=message):
        collate(
            feature([-100, 5], [-100, 7], [0.1], [0.1]),
            feature([-100, 5, 6], [-100, 7], chosen_scores, rejected_scores),
        )


def test_scores_are_compared_in_float32():
    """Two scores that are equal in bfloat16: the later one is higher and must be selected."""
    batch = collate(feature([-100, 5, 6], [-100, 7, 8], [1.0, 1.0 + 2**-20], [-1.0, -1.0 - 2**-20]), chosen_ratio=0.5)
    assert batch[SELECTION].int().tolist() == [[0, 0, 1, 0, 0], [0, 0, 1, 0, 0]]


def test_steps_and_counts_reach_the_selection():
    """Steps select whole sentences; counts set the budget of each response, independent of the ratio."""
    row = feature([-100, 5, 6, 7, 8], [-100, 8, 9], [0.1, 0.9, 0.6, 0.0], [0.3, -0.3])
    row |= {"chosen_steps": [0, 0, 1, 1], "rejected_steps": [0, 1], "chosen_counts": 3, "rejected_counts": 1}

    def selection(**options):
        return SelectionCollator(pad, method=resolve_method("sepo", **options))([row])[SELECTION].int().tolist()

    assert selection(unit="step") == [[0, 1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0]]
    assert selection(scope="dataset") == [[0, 1, 1, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0]]
    assert selection(unit="span", span_tokens=2) == [[0, 0, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0]]
    # One budget of floor(0.5 * 6): 0.9 and 0.6 of the chosen response, 0.3 (for a lowest score of -0.3) of the other.
    both = selection(scope="pair", chosen_ratio=0.5, rejected_ratio=0.5)
    assert both == [[0, 0, 1, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0]]


def test_step_numbers_are_aligned_with_the_labels():
    rows = [
        feature([-100, 5, -100, 6], [-100, 7], [], []) | {"chosen_steps": [1, 2], "rejected_steps": [3]},
        feature([5, 6], [-100, -100, 7, 8], [], []) | {"chosen_steps": [4], "rejected_steps": [5, 6]},
    ]
    steps = StepCollator(pad)(rows)[STEPS]
    assert steps.tolist() == [[0, 1, 0, 2, 0, 0], [0, 4, 0, 0, 0, 0], [0, 3, 0, 0, 0, 0], [0, 0, 5, 6, 0, 0]]
    rows[1]["rejected_steps"] = [5]
    with pytest.raises(SepoError, match="1 step numbers for a rejected response of 2 tokens: the step numbers belong"):
        StepCollator(pad)(rows)


def pad_left(rows):
    """Collate with the padding of each row before its tokens."""
    labels = [row["chosen_labels"] for row in rows] + [row["rejected_labels"] for row in rows]
    width = max(map(len, labels)) + 2
    return {
        "labels": torch.tensor([[-100] * (width - len(row)) + row for row in labels]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in labels]),
    }


def test_padding_on_the_left_selects_the_same_tokens():
    """Also in rows without a prompt, whose first token has no score: the padding before it is no predecessor."""
    features = (
        feature([-100, -100, 5, 6, 7], [-100, 8, 9], [0.1, 0.9, 0.5], [0.3, -0.3]),
        feature([5, 6, 7], [8, 9], [0.2, 0.7], [0.1]),
    )
    method = resolve_method("sepo", chosen_ratio=0.5, rejected_ratio=0.5)
    left = SelectionCollator(pad_left, method=method)(features)
    right = SelectionCollator(pad, method=method)(features)[SELECTION]
    shifts = (left["attention_mask"] == 0).sum(-1).tolist()
    moved = torch.stack([row.roll(shift) for row, shift in zip(right, shifts, strict=True)])
    assert left[SELECTION].equal(moved)
    steps = [{**row, **{f"{side}_steps": [1] * len(row[f"{side}_scores"]) for side in ("chosen", "rejected")}}
             for row in features]  # fmt: skip
    assert StepCollator(pad_left)(steps)[STEPS].sum(-1).tolist() == [3, 2, 2, 1]
