"""Columns besides the tokens: random scores, steps, and shares of a data set's budget, for any order of rows."""

import math
from dataclasses import replace
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


def scored(table, number):
    """Return the rows with a score for each response token that can be scored: ``number(row, side, token)``."""
    for side in SIDES:
        scores = [
            [number(row, side, token) for token in range(sum(label != IGNORE for label in labels))]
            for row, labels in enumerate(table[f"{side}_labels"])
        ]
        table = table.add_column(f"{side}_scores", scores)
    return table


def test_scores_without_a_weight_raise_before_training_with_their_row(table, words):
    """Critical weights need scores in [0, 1] of rejected responses; those of chosen ones are not read."""
    method = resolve_method("critical_dpo")
    fine = scored(table, lambda row, side, token: -3.0 if side == "chosen" else token % 2)
    assert prepare(fine, method, words)["train_dataset"].to_dict() == fine.to_dict()
    wrong = scored(table, lambda row, side, token: 1.5 if (row, side, token) == (7, "rejected", 3) else 0.5)
    message = (
        r"row 7 of train: its rejected response, which starts with 'It has 2 wings or none.*', has the score 1.5 at "
        r"its token 3, expected a number in \[0, 1\], since token_weight critical is 1 - score: correct its chosen_scor"
    )
    with pytest.raises(SepoError, match=message):
        prepare(wrong, method, words)
    with pytest.raises(SepoError, match="row 7 of eval more: its rejected"):
        prepare(fine, method, words, eval_dataset={"more": wrong})
    # Only selected tokens have a weight: the lowest scores.
    some = resolve_method("critical_dpo", rejected_ratio=0.5)
    assert prepare(wrong, some, words)


def test_weights_that_a_mean_cannot_take_raise_before_training(table, words):
    """Negative ones, of a scorer that declares its scores to be at least 0, and those of a response that are all 0."""
    method = resolve_method("simpo", token_scorer="oracle", token_weight="importance", importance_low=0.0)
    fine = scored(table, lambda row, side, token: token - 2.0)
    assert prepare(fine, method, words)
    zero = scored(table, lambda row, side, token: -9.0 if (row, side) == (4, "chosen") else 1.0)
    message = "row 4 of train: its chosen response, which .* has token weights that are all 0, .* since simpo takes"
    with pytest.raises(SepoError, match=message + r".*: token_scorer is oracle; use another"):
        prepare(zero, method, words)
    assert prepare(zero, resolve_method("dpo", token_scorer="oracle", token_weight="importance"), words)
    declared = replace(resolve_method("dpo", token_scorer="file", token_weight="scores"), name="mean")
    declared = replace(declared, token_scorer=replace(declared.token_scorer, bounds=(0.0, math.inf)))
    declared = replace(declared, reward=replace(declared.reward, average=True))
    with pytest.raises(SepoError, match=r"row 0 of train: .* has the token weight -2 \(ScoreWeight\) at its"):
        prepare(fine, declared, words)
    assert prepare(fine, resolve_method("dpo", token_scorer="file", token_weight="scores"), words)


def test_weights_are_those_of_units_and_scopes_that_a_step_selects(table, words):
    """With steps, a threshold of the data set and pairs: the check reads the columns that the collator reads."""
    values = scored(table, lambda row, side, token: 0.5 if token % 3 else 2.0)
    for options in ({"unit": "step"}, {"scope": "dataset"}, {"scope": "pair"}):
        method = resolve_method("critical_dpo", chosen_ratio=0.3, rejected_ratio=0.3, **options)
        if options == {"unit": "step"}:
            with pytest.raises(SepoError, match="has the score 2 at its token"):
                prepare(values, method, words)
        else:
            assert prepare(values, method, words)


def test_weights_of_positions_that_a_mean_cannot_take_raise_before_training(table, words):
    """The selected tokens of a rejected response that come after the length of a short chosen one all weigh 0."""
    method = resolve_method("sepo", token_scorer="oracle", token_weight="length", length_alpha=0.0, rejected_ratio=0.01)

    def begins(side, token):
        return -float(token) if side == "chosen" else float(token)

    assert prepare(scored(table, lambda row, side, token: begins(side, token)), method, words)
    lengths = [[sum(label != -100 for label in labels) for labels in table[f"{side}_labels"]] for side in SIDES]
    row = next(index for index, (chosen, rejected) in enumerate(zip(*lengths, strict=True)) if chosen < rejected)
    ends = scored(table, lambda at, side, token: (-1 if (at, side) == (row, "rejected") else 1) * begins(side, token))
    with pytest.raises(SepoError, match=f"row {row} of train: its rejected response, .* weights that are all 0"):
        prepare(ends, method, words)
