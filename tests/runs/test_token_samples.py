"""The record of selected tokens equals what the steps used: stored, live, in parts, accumulated, resumed."""

import contextlib
import json
import logging
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaForCausalLM

from sepo.objectives import resolve_method, select
from sepo.runs.token_samples import PAIRS, TokenRecord, recorded_steps
from sepo.runs.token_samples_reader import RECORD_FILE, read_record
from sepo.text.token_texts import TokenTexts
from sepo.training import SELECTION, StepCollator, preference_step
from sepo.training.batch_parts import Parts
from sepo.training.collators import selecting_collator
from sepo.training.selection_columns import CandidateCollator
from tests.support import tiny
from tests.support.steps import SEPO, collate, make_pairs

pytestmark = pytest.mark.usefixtures("exact_norms")
IGNORE = -100
SIDES = ("chosen", "rejected")
ROWS = make_pairs(6, seed=9)


class Rows:
    """The training rows as a list."""

    def __init__(self, rows):
        self.rows = rows

    def find(self, chosen, rejected):
        both = (list(chosen), list(rejected))
        found = [i for i, row in enumerate(self.rows) if tuple(row[f"{s}_input_ids"] for s in SIDES) == both]
        return found[0] if found else None

    def scores(self, row):
        values = self.rows[row]
        return tuple(values[f"{side}_scores"] for side in SIDES) if "chosen_scores" in values else None


@pytest.fixture(scope="module")
def models(world):
    return [LlamaForCausalLM.from_pretrained(world / name, dtype=torch.float64).eval() for name in ("policy", "base")]


def started(directory, method, *, rows=ROWS, last=4, step=0):
    record = TokenRecord(method=method, tokenizer=tiny.tokenizer(), rows=Rows(rows))
    state = SimpleNamespace(max_steps=last, global_step=step)
    record.on_train_begin(SimpleNamespace(output_dir=str(directory)), state, None)
    return record


def step(models, record, batch, method, number, **options):
    policy, reference = models
    return preference_step(
        policy, batch, method=method, reference=lambda: contextlib.nullcontext(reference),
        watch=record.watch(number), **options,
    )  # fmt: skip


def places(row, side, kept):
    """Return the selected tokens [T - 1], shifted, as indices in the response."""
    first = row[f"{side}_labels"].index(next(label for label in row[f"{side}_labels"] if label != IGNORE))
    return [int(place) + 1 - first for place in kept.nonzero().flatten()]


def test_stored_scores_with_the_selection_of_the_collator(models, tmp_path):
    record = started(tmp_path, SEPO)
    batch = collate(ROWS, extra=3)
    plain = preference_step(models[0], batch, method=SEPO)
    assert step(models, record, batch, SEPO, 1).loss.item() == plain.loss.item()
    pairs, unread = read_record(tmp_path)
    assert (len(pairs), unread) == (6, 0)
    for index, (row, pair) in enumerate(zip(ROWS, pairs, strict=True)):
        assert (pair.row, pair.step) == (index, 1)
        for number, side in enumerate(SIDES):
            response, labels = getattr(pair, side), [x for x in row[f"{side}_labels"] if x != IGNORE]
            assert list(response.tokens) == TokenTexts(tiny.tokenizer()).spelling(labels)
            assert response.scores == pytest.approx(row[f"{side}_scores"], rel=1e-8)
            kept = batch[SELECTION][number * len(ROWS) + index][1:]
            assert [i for i, on in enumerate(response.selected) if on] == places(row, side, kept)


@pytest.mark.parametrize("method", [SEPO, resolve_method("simpo", token_scorer="confidence")], ids=lambda m: m.scorer)
def test_tokens_that_may_not_be_selected_are_recorded(models, tmp_path, method):
    rows = [
        {**row, **{f"{s}_candidates": [True] * (len(row[f"{s}_scores"]) - 1) + [False] for s in SIDES}}
        for row in ROWS if all(len(row[f"{s}_scores"]) > 1 for s in SIDES)
    ]  # fmt: skip
    assert rows
    batch = collate(rows, method)
    if method.scorer == "confidence":
        batch = CandidateCollator(lambda features: collate(features, method))(rows)
    step(models, started(tmp_path, method, rows=rows), batch, method, 1)
    pairs, unread = read_record(tmp_path)
    assert (len(pairs), unread) == (len(rows), 0)
    for pair in pairs:
        for side in SIDES:
            answer = getattr(pair, side)
            assert answer.candidates == (*[True] * (len(answer.tokens) - 1), False)
            assert not answer.selected[-1]
            assert math.isnan(answer.scores[-1]) == (method.scorer == "confidence")
    line = json.loads((tmp_path / RECORD_FILE).read_text().splitlines()[0])
    line["chosen"]["template"] = [99]
    (tmp_path / RECORD_FILE).write_text(json.dumps(line) + "\n")
    assert read_record(tmp_path) == ([], 1)


@pytest.mark.parametrize("name", ["selective_dpo", "confidence"])
def test_live_scores_are_those_that_selected(models, tmp_path, name):
    method = (
        resolve_method("selective_dpo", chosen_ratio=0.4, rejected_ratio=0.2)
        if name == "selective_dpo"
        else resolve_method("simpo", token_scorer="confidence", chosen_ratio=0.5, rejected_ratio=0.5)
    )
    record = started(tmp_path, method)
    step(models, record, collate(ROWS, method), method, 1)
    for pair in read_record(tmp_path)[0]:
        given = {}
        for side in SIDES:
            scores = torch.tensor([getattr(pair, side).scores], dtype=torch.float64)
            given |= {f"{side}_scores": scores, f"{side}_mask": torch.ones(scores.shape, dtype=torch.bool)}
        ratios = {f"{side}_ratio": getattr(method.selector, f"{side}_ratio") for side in SIDES}
        again = resolve_method("sepo", **ratios)
        again = replace(again, token_scorer=replace(again.token_scorer, rejected_largest=True))
        for side, kept in zip(SIDES, select(again, **given), strict=True):
            assert kept[0].tolist() == list(getattr(pair, side).selected)


WEIGHED = {
    "d2po": {"decay": 0.9},
    "tgdpo": {"alpha": 3.0, "beta": 0.5, "rejected_ratio": 0.9},
    "dpo": {"token_scorer": "confidence", "token_weight": "scores", "chosen_ratio": 0.5, "rejected_ratio": 0.5},
}
"""Objectives whose weights depend on positions, on stored scores, and on live ones, with hyperparameters."""


def by_hand(name, chosen, position, score):
    """Return the weight of a selected token of these objectives."""
    if name == "d2po":
        return 0.9 ** (position + 1)
    return 1 + (3.0 * 0.5 if chosen else -3.0 * 0.5) * score if name == "tgdpo" else score


@pytest.mark.parametrize("name", WEIGHED)
def test_weights_are_recorded_with_the_selected_tokens(models, tmp_path, name):
    method = resolve_method(name, **WEIGHED[name])
    collator = selecting_collator(lambda rows: collate(rows, resolve_method("simpo"), extra=2), method=method)
    step(models, started(tmp_path, method), collator(ROWS), method, 1)
    pairs, unread = read_record(tmp_path)
    assert (len(pairs), unread) == (len(ROWS), 0)
    seen = []
    for pair in pairs:
        for side in SIDES:
            answer = getattr(pair, side)
            expected = [
                by_hand(name, side == "chosen", place, score) if kept else 0.0
                for place, (score, kept) in enumerate(zip(answer.scores, answer.selected, strict=True))
            ]
            assert answer.weights == pytest.approx(expected, rel=1e-6, abs=1e-6)  # 1 - 1.5 score cancels, in float32
            seen += [weight for weight in answer.weights if weight]
    assert len(set(seen)) > 5
    assert (min(seen) < 0) == (name == "tgdpo")


def test_a_method_without_weights_records_none(models, tmp_path):
    step(models, started(tmp_path, SEPO), collate(ROWS), SEPO, 1)
    assert "weights" not in (tmp_path / RECORD_FILE).read_text()
    assert all(getattr(pair, side).weights is None for pair in read_record(tmp_path)[0] for side in SIDES)


@pytest.mark.parametrize("weights", [[], [1.0], [1.0, 2.0, 3.0], [1.0, None], [1.0, "2"], [1.0, float("inf")], 1.0])
def test_weights_that_are_not_those_of_the_selected_tokens_are_not_read(tmp_path, weights):
    answer = {"tokens": ["a", "b", "c"], "scores": [1, 2, 3], "selected": [2, 0], "weights": [0.5, -2]}
    line = {"step": 1, "row": 0, "prompt": "q", "chosen": answer, "rejected": answer}
    (tmp_path / RECORD_FILE).write_text(json.dumps(line) + "\n")
    ((pair,), unread) = read_record(tmp_path)
    assert (pair.chosen.weights, unread) == ((-2.0, 0.0, 0.5), 0)
    (tmp_path / RECORD_FILE).write_text(json.dumps({**line, "rejected": {**answer, "weights": weights}}) + "\n")
    assert read_record(tmp_path) == ([], 1)


def test_without_a_scorer_there_are_no_scores_and_all_tokens(models, tmp_path):
    method = resolve_method("simpo")
    record = started(tmp_path, method, rows=[{k: v for k, v in row.items() if "scores" not in k} for row in ROWS])
    step(models, record, collate(ROWS, method), method, 1)
    pairs, _ = read_record(tmp_path)
    assert all(all(getattr(pair, side).selected) for pair in pairs for side in SIDES)
    assert all(score != score for pair in pairs for side in SIDES for score in getattr(pair, side).scores)


def test_the_first_token_of_a_response_without_a_prompt_is_never_selected(models, tmp_path):
    row = {"chosen_input_ids": [7, 8, 9], "chosen_labels": [7, 8, 9], "rejected_input_ids": [5, 6],
           "rejected_labels": [5, 6], "chosen_scores": [1.0, -1.0], "rejected_scores": [2.0]}  # fmt: skip
    record = started(tmp_path, SEPO, rows=[row])
    step(models, record, collate([row]), SEPO, 1)
    (pair,) = read_record(tmp_path)[0]
    assert pair.prompt == ""
    assert pair.chosen.scores[1:] == (1.0, -1.0)
    assert pair.chosen.scores[0] != pair.chosen.scores[0]
    assert (pair.chosen.selected, pair.rejected.selected) == ((False, True, False), (False, True))


def test_parts_record_pairs_of_the_first_one_once(models, tmp_path):
    """If another process has more parts, the first part runs twice and is recorded once."""
    record = started(tmp_path, SEPO)
    step(models, record, collate(ROWS), SEPO, 1, parts=Parts(30, agree=lambda parts: parts + 2))
    whole = started(tmp_path / "whole", SEPO)
    (tmp_path / "whole").mkdir()
    step(models, whole, collate(ROWS), SEPO, 1)
    pairs, _ = read_record(tmp_path)
    assert 0 < len(pairs) < len(ROWS)
    assert len({pair.row for pair in pairs}) == len(pairs)
    assert {pair.row: pair for pair in pairs}.items() <= {p.row: p for p in read_record(tmp_path / "whole")[0]}.items()


def test_few_steps_and_few_pairs_of_each_for_any_accumulation(models, tmp_path):
    record = started(tmp_path, SEPO, last=1000)
    steps = recorded_steps(1000)
    watched = [number for number in range(1, 1001) if record.watch(number) is not None]
    assert watched == steps
    assert len(steps) <= 16
    for number in steps[:3]:
        for rows in (ROWS[:3], ROWS[3:], ROWS[:3]):  # an optimizer step of three device batches
            step(models, record, collate(rows), SEPO, number)
    pairs, _ = read_record(tmp_path)
    assert [pair.step for pair in pairs] == [number for number in steps[:3] for _ in range(4)]
    assert [pair.row for pair in pairs[:4]] == [0, 1, 2, 3]
    for last in (1, 2, 3, 15, 16, 17, 10_000):
        assert len(recorded_steps(last)) * (PAIRS // len(recorded_steps(last))) <= PAIRS
        assert recorded_steps(last)[-1] == last


def test_a_resumed_run_records_its_later_steps_again(models, tmp_path):
    def trained(steps, begin, directory=tmp_path):
        record = started(directory, SEPO, step=begin)
        for number in steps:
            step(models, record, collate(ROWS[number - 1 : number]), SEPO, number)

    trained(range(1, 5), 0)
    whole = (tmp_path / RECORD_FILE).read_bytes()
    assert len(whole.splitlines()) == 4
    (tmp_path / RECORD_FILE).write_bytes(whole[:-40])  # killed in the middle of a line
    trained(range(3, 5), 2)
    assert (tmp_path / RECORD_FILE).read_bytes() == whole
    trained(range(1, 5), 0)  # restarted in the same directory
    assert (tmp_path / RECORD_FILE).read_bytes() == whole


@pytest.mark.parametrize("trouble", ["directory", "tokenizer"])
def test_a_failure_is_one_warning_and_does_not_change_the_step(models, tmp_path, caplog, trouble):
    record = started(tmp_path, SEPO)
    if trouble == "directory":
        (tmp_path / RECORD_FILE).mkdir()
    else:
        record.tokenizer = SimpleNamespace()
    with caplog.at_level(logging.WARNING):
        losses = [step(models, record, collate(ROWS), SEPO, number).loss.item() for number in (1, 2)]
    assert losses == [preference_step(models[0], collate(ROWS), method=SEPO).loss.item()] * 2
    (line,) = [message for message in caplog.messages if "no sample of selected tokens" in message]
    assert "the run continues" in line


def test_it_records_with_step_units(models, tmp_path):
    method = resolve_method("simpo", token_scorer="confidence", unit="step")
    rows = [{**row, **{f"{s}_steps": [i // 2 for i in range(len(row[f"{s}_scores"]))] for s in SIDES}} for row in ROWS]
    record = started(tmp_path, method, rows=rows)
    step(models, record, StepCollator(lambda given: collate(given, method))(rows), method, 1)
    assert len(read_record(tmp_path)[0]) == 6


CHANGES = [
    ("}", ""), ('"step": 1', '"step": "1"'), ('"step": 1', '"step": 1.5'), ('"row": 0', '"row": NaN'),
    ('"selected": [', '"selected": [999, '), ('"selected": [', '"selected": [true, '),
    ('"scores": [', '"scores": [1, '), ('"scores": [', '"scores": ["0.5", '),
    ('"tokens": [', '"tokens": [[], '), ('"tokens"', '"other"'),
]  # fmt: skip


@pytest.mark.parametrize("change", [*CHANGES, "[]", "null", "[" * 5000, "\0"])
def test_a_line_that_is_not_a_pair_is_counted_and_skipped(models, tmp_path, change):
    record = started(tmp_path, SEPO)
    step(models, record, collate(ROWS[:2]), SEPO, 1)
    first, second = (tmp_path / RECORD_FILE).read_text().splitlines()
    assert json.loads(first)["row"] == 0
    changed = change if isinstance(change, str) else first.replace(*change)
    assert changed != first
    (tmp_path / RECORD_FILE).write_text(f"{changed}\n\n{second}\n")
    pairs, unread = read_record(tmp_path)
    assert ([pair.row for pair in pairs], unread) == ([1], 1)
