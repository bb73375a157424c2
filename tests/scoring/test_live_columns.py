"""Columns besides the tokens: random scores, steps, and shares of a data set's budget, for any order of rows."""

import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from sepo.errors import SepoError
from sepo.objectives import resolve_method
from sepo.scoring.live_columns import mapped, selection_columns
from sepo.training import SELECTION, SelectionCollator
from tests.support import tiny

SIDES = ("chosen", "rejected")
IGNORE = -100


@pytest.fixture(scope="module")
def words():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def table(words):
    """Return tokenized pairs in the host's columns."""
    columns = {f"{side}_{name}": [] for side in SIDES for name in ("input_ids", "labels")}
    for row in tiny.pairs(9):
        prompt = words.encode(row["conversations"][0]["value"])
        for side in SIDES:
            answer = [*words.encode(row[side]["value"] + " Yes. No!\nWhy"), words.eos_token_id]
            columns[f"{side}_input_ids"].append(prompt + answer)
            columns[f"{side}_labels"].append([IGNORE] * len(prompt) + answer)
    return Dataset.from_dict(columns)


def pad(rows):
    labels = [row[f"{side}_labels"] for side in SIDES for row in rows]
    width = max(map(len, labels))
    return {"labels": torch.tensor([row + [IGNORE] * (width - len(row)) for row in labels])}


def selected(data, method):
    """Return the selection of each row, collated in batches of 4, by prompt and response."""
    found = {}
    for start in range(0, len(data), 4):
        rows = [data[index] for index in range(start, min(start + 4, len(data)))]
        batch = SelectionCollator(pad, method=method)(rows)[SELECTION]
        for index, kept in enumerate(batch):
            row, side = rows[index % len(rows)], SIDES[index // len(rows)]
            found[tuple(row[f"{side}_input_ids"]), side] = kept.nonzero().flatten().tolist()
    return found


def prepare(data, method, words, **more):
    return selection_columns({"train_dataset": data, **more}, method, tokenizer=words, seed=more.pop("seed", 3))


@pytest.mark.parametrize("options", [{}, {"unit": "span"}, {"unit": "step"}, {"scope": "pair"}])
def test_random_selects_the_same_in_any_order_and_otherwise_with_another_seed(table, words, options):
    method = resolve_method("sepo", token_scorer="random", **options)

    def run(data, seed=3):
        prepared = selection_columns({"train_dataset": data}, method, tokenizer=words, seed=seed)
        return selected(prepared["train_dataset"], method)

    plain = run(table)
    assert run(table.select([5, 0, 8, 1, 7, 2, 3, 6, 4])) == plain
    assert run(table.select([2])) == {key: kept for key, kept in plain.items() if key in run(table.select([2]))}
    assert run(table, seed=4) != plain


def test_steps_are_of_the_response_and_end_with_lines_and_sentences(table, words):
    method = resolve_method("selective_dpo", unit="step")
    data = prepare(table, method, words)["train_dataset"]
    for row in data:
        for side in SIDES:
            answer = [label for label in row[f"{side}_labels"] if label != IGNORE]
            steps = row[f"{side}_steps"]
            texts = [
                words.decode([t for t, step in zip(answer, steps, strict=True) if step == number])
                for number in sorted(set(steps))
            ]
            assert [text.strip() for text in texts[1:]] == ["Yes.", "No!", "Why<|im_end|>"]


@pytest.mark.parametrize("unit", ["token", "span", "step"])
def test_dataset_scope_keeps_the_ratio_over_the_data_set(table, words, unit):
    method = resolve_method("sepo", token_scorer="random", scope="dataset", unit=unit, chosen_ratio=0.4)
    data = prepare(table, method, words)["train_dataset"]
    found = selected(data, method)
    assert all(found.values())
    for side, ratio, sign in (("chosen", 0.4, -1), ("rejected", 0.3, 1)):
        ranked = sorted(
            (sign * torch.tensor(score).item(), row, place)
            for row, scores in enumerate(data[f"{side}_scores"])
            for place, score in enumerate(scores)
        )
        best = {(row, place) for _, row, place in ranked[: math.floor(ratio * len(ranked) + 1e-9)]}
        if unit == "token":
            kept = set()
            for index, row in enumerate(data):
                start = row[f"{side}_labels"].count(IGNORE)
                kept |= {(index, t - start) for t in found[tuple(row[f"{side}_input_ids"]), side]}
            assert best <= kept
            lonely = {row for row, _ in kept - best}
            assert all(sum(row == own for row, _ in kept) == 1 for own in lonely)
        assert sum(data[f"{side}_counts"]) >= len(best)


def test_evaluation_rows_meet_the_training_sets_threshold(table, words):
    method = resolve_method("sepo", token_scorer="file", scope="dataset", chosen_ratio=0.5, rejected_ratio=0.5)

    def scored(rows, value):
        made = rows.to_dict()
        for side in SIDES:
            counts = [len([x for x in labels if x != IGNORE]) for labels in made[f"{side}_labels"]]
            made[f"{side}_scores"] = [[value + place for place in range(count)] for count in counts]
        return Dataset.from_dict(made)

    train, other = scored(table, 0.0), scored(table.select([0, 1]), 1000.0)
    result = prepare(train, method, words, eval_dataset={"a": other})
    part = result["eval_dataset"]["a"]
    assert part["chosen_counts"] == [len(scores) for scores in part["chosen_scores"]]  # all above the threshold
    assert part["rejected_counts"] == [1, 1]  # none below it, and never fewer than one
    alone = selection_columns({"eval_dataset": other}, method, tokenizer=words, seed=3)["eval_dataset"]
    assert 0 < sum(alone["chosen_counts"]) < sum(part["chosen_counts"])


def test_nothing_is_added_if_nothing_is_needed(table, words):
    for objective in ("dpo", "sepo", "selective_dpo"):
        assert prepare(table, resolve_method(objective), words)["train_dataset"] is table


def test_missing_file_scores_are_reported(table):
    words = SimpleNamespace()
    with pytest.raises(SepoError, match=r"train was tokenized without its scores .* tokenized_path"):
        selection_columns(
            {"train_dataset": table}, resolve_method("sepo", token_scorer="file"), tokenizer=words, seed=0
        )


def test_added_columns_make_another_data_set_and_the_same_one_again(table):
    def made(rows, name):
        return mapped(rows, lambda batch: {"n": [0] * len(batch["chosen_labels"])}, name)

    first = made(table, "steps")
    assert first._fingerprint == made(table, "steps")._fingerprint
    others = [table, made(table, "scores"), made(table.select(range(4)), "steps")]
    assert len({data._fingerprint for data in (first, *others)}) == 4
