"""Tokens of the chat template are not selected and not counted: as if they were removed by hand, in every selection."""

import itertools

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sepo.errors import SepoError
from sepo.objectives import resolve_method, select
from sepo.scoring.live_columns import selection_columns
from sepo.text.template_tokens import NO_TEMPLATE, TemplateTokens
from sepo.training import SELECTION
from sepo.training.collators import selecting_collator
from sepo.training.row_losses import RowLosses
from sepo.training.selection_columns import CANDIDATE_COLUMNS, CANDIDATES
from sepo.training.step import preference_step
from sepo.training.trainable_rows import NO_CANDIDATE, candidate_flags, keep_trainable
from tests.support import tiny

SIDES = ("chosen", "rejected")
IGNORE = -100
QWEN = TemplateTokens(leading=((90, 91, 92),), trailing=(2, 93))  # an empty thought; end of turn and line break
SELECTIONS = [
    {"rule": rule, "scope": scope, "unit": unit}
    for rule, scope, unit in itertools.product(
        ("floor", "quantile"), ("response", "pair", "dataset"), ("token", "span", "step")
    )
    if rule == "floor" or (scope, unit) == ("response", "token")  # the quantile is of a response's tokens
]

numbers = st.integers(-3, 3)  # equal scores are frequent
responses = st.tuples(
    st.lists(st.tuples(st.integers(20, 60), numbers), min_size=1, max_size=9),  # tokens of the text and their scores
    st.booleans(),  # whether the template writes an empty thought
    st.integers(0, 3),  # tokens of the end that truncation leaves
)


@pytest.fixture(scope="module")
def words():
    return tiny.tokenizer()


def rows_of(pairs, *, template):
    """Return pairs as rows in the hosts' columns; without the template's tokens if ``template`` is False."""
    made = []
    for pair in pairs:
        row = {}
        for side, (text, thought, left) in zip(SIDES, pair, strict=True):
            end = [(2, 1.0), (93, 2.5)][:left]
            before = [(token, 3.0 if side == "chosen" else -3.0) for token in QWEN.leading[0]] if thought else []
            tokens = [*(before if template else []), *text, *(end if template else end[:1])]
            row[f"{side}_input_ids"] = [5, 6, *(token for token, _ in tokens)]
            row[f"{side}_labels"] = [IGNORE, IGNORE, *(token for token, _ in tokens)]
            row[f"{side}_scores"] = [float(score) for _, score in tokens]
        made.append(row)
    return made


def pad(rows):
    labels = [row[f"{side}_labels"] for side in SIDES for row in rows]
    width = max(map(len, labels))
    return {"labels": torch.tensor([row + [IGNORE] * (width - len(row)) for row in labels])}


def selected_texts(rows, method, words, *, template):
    """Return per response the flags of its tokens outside the template, and whether any of the template is selected."""
    data = selection_columns(
        {"train_dataset": Dataset.from_list(rows)}, method, tokenizer=words, seed=1, template=template
    )["train_dataset"]
    assert set(CANDIDATE_COLUMNS) <= set(data.column_names) or not template
    batch = selecting_collator(pad, method=method)(list(data))
    found = []
    for labels, kept in zip(batch["labels"], batch[SELECTION], strict=True):
        own = [label for label in labels.tolist() if label != IGNORE]
        flags = QWEN.candidates(own)
        marks = kept[labels != IGNORE].tolist()
        assert not any(mark and not flag for mark, flag in zip(marks, flags, strict=True)) or not template
        found.append([mark for mark, flag in zip(marks, flags, strict=True) if flag])
    return found


@pytest.mark.parametrize("options", SELECTIONS, ids=lambda options: "-".join(options.values()))
@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(responses, responses), min_size=1, max_size=4), st.sampled_from([0.1, 0.4, 0.5, 1.0]))
def test_the_selection_is_that_of_responses_without_the_template_s_tokens(words, options, pairs, ratio):
    method = resolve_method("sepo", chosen_ratio=ratio, rejected_ratio=ratio, **options)
    expected = selected_texts(rows_of(pairs, template=False), method, words, template=NO_TEMPLATE)
    assert selected_texts(rows_of(pairs, template=True), method, words, template=QWEN) == expected


def test_the_best_scores_would_be_the_template_s(words):
    """The property above does not hold by itself."""
    pairs = [(([(30, 0), (31, 1)], True, 2), ([(30, 0), (32, -1)], False, 2))]
    method, rows = resolve_method("sepo"), rows_of(pairs, template=True)
    kept = selecting_collator(pad, method=method)(rows)[SELECTION]
    assert kept[0].nonzero().flatten().tolist() == [2, 3]  # two tokens of the thought
    assert selected_texts(rows, method, words, template=QWEN) == [[False, True, False], [False, True, False]]


def test_steps_begin_with_the_text(words):
    """An enumeration at the start of the text is one, although the template has written something before it."""
    text = words.encode("1. One\n2. Two")
    written = TemplateTokens(leading=(tuple(words.encode("thought")),))
    row = {}
    for side in SIDES:
        tokens = [*written.leading[0], *text]
        row[f"{side}_input_ids"], row[f"{side}_labels"] = [5, *tokens], [IGNORE, *tokens]
        row[f"{side}_scores"] = [0.0] * len(tokens)
    method, data = resolve_method("sepo", unit="step"), {"train_dataset": Dataset.from_list([row])}
    made = selection_columns(data, method, tokenizer=words, seed=1, template=written)["train_dataset"][0]
    before = len(written.leading[0])
    for row in rows_of([(([(token, 0) for token in text], False, 0),) * 2], template=False):
        data = {"train_dataset": Dataset.from_list([row])}
        alone = selection_columns(data, method, tokenizer=words, seed=1)["train_dataset"][0]
        assert made["chosen_steps"] == [0] * before + alone["chosen_steps"]
        assert len(set(alone["chosen_steps"])) == 2


@pytest.mark.parametrize("objective", ["simpo", "dpo"])
def test_methods_without_a_selection_train_on_every_token(words, objective):
    data = {"train_dataset": Dataset.from_list(rows_of([(([(30, 0)], True, 2),) * 2], template=True))}
    assert selection_columns(data, resolve_method(objective), tokenizer=words, seed=1, template=QWEN) == data


@pytest.mark.parametrize("scorer", ["oracle", "random"])
def test_a_template_that_writes_nothing_adds_no_column(words, scorer):
    method = resolve_method("simpo", token_scorer=scorer)
    data = {"train_dataset": Dataset.from_list(rows_of([(([(30, 0)], True, 2),) * 2], template=True))}
    made = selection_columns(data, method, tokenizer=words, seed=1, template=TemplateTokens(trailing=(2,)))
    batch = selecting_collator(pad, method=method)(list(made["train_dataset"]))
    assert CANDIDATES not in batch
    assert not set(CANDIDATE_COLUMNS) & set(made["train_dataset"].column_names)


@pytest.mark.parametrize("options", [{}, {"unit": "span"}, {"scope": "pair"}, {"unit": "step"}], ids=str)
def test_a_live_selection_and_its_metrics_leave_the_template_s_tokens_out(world, words, options):
    """The step selects from its own log-probabilities what ``select`` selects from those of the other tokens."""
    policy = tiny_policy(world)
    method = resolve_method("simpo", token_scorer="confidence", chosen_ratio=0.5, rejected_ratio=0.5, **options)
    pairs = [
        (([(30, 0), (31, 0), (32, 0), (33, 0)], True, 2), ([(40, 0), (41, 0), (42, 0)], False, 2)),
        (([(50, 0)], False, 1), ([(51, 0), (52, 0)], True, 0)),
    ]
    rows = rows_of(pairs, template=True)
    data = {"train_dataset": Dataset.from_list(rows)}
    data = selection_columns(data, method, tokenizer=words, seed=1, template=QWEN)["train_dataset"]
    batch = selecting_collator(whole_batch, method=method)(list(data))
    seen = []
    output = preference_step(policy, batch, method=method, watch=seen.append)
    (tokens,) = seen
    arguments, counted = {}, {}
    for number, side in enumerate(SIDES):
        flags = [candidate_flags(row[f"{side}_labels"], QWEN) for row in rows]
        widest = max(map(sum, flags))
        mask = torch.tensor([[True] * sum(own) + [False] * (widest - sum(own)) for own in flags])
        logps, steps = torch.zeros(mask.shape), torch.zeros(mask.shape, dtype=torch.int64)
        for index, own in enumerate(flags):
            place = torch.tensor([False, *own])[: tokens.policy_logps.shape[1]]  # a prompt of two tokens
            logps[index, : sum(own)] = tokens.policy_logps[2 * number + index][: len(place)][place]
            if options.get("unit") == "step":
                steps[index, : sum(own)] = torch.tensor(data[index][f"{side}_steps"])[torch.tensor(own)]
        arguments |= {f"{side}_mask": mask, f"policy_{side}_logps": logps, f"{side}_steps": steps}
        counted[side] = flags
    for number, (side, kept) in enumerate(zip(SIDES, select(method, **arguments), strict=True)):
        for index, own in enumerate(counted[side]):
            found = tokens.selection[2 * number + index][1 : 1 + len(own)].tolist()
            assert [mark for mark, flag in zip(found, own, strict=True) if flag] == kept[index][: sum(own)].tolist()
            assert not any(mark for mark, flag in zip(found, own, strict=True) if not flag)
        share = kept.sum() / arguments[f"{side}_mask"].sum()
        assert output.metrics[f"select/{side}_ratio"] == pytest.approx(share.item())


def test_without_the_columns_a_live_selection_is_of_every_token(world, words):
    method = resolve_method("simpo", token_scorer="confidence", chosen_ratio=1.0, rejected_ratio=1.0)
    rows = rows_of([(([(30, 0)], True, 2), ([(40, 0)], False, 2))], template=True)
    seen = []
    output = preference_step(tiny_policy(world), whole_batch(rows), method=method, watch=seen.append)
    assert seen[0].selection.sum(-1).tolist() == [6, 3]
    assert output.metrics["select/chosen_ratio"] == 1.0


def tiny_policy(world):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(world / "policy").eval()


def whole_batch(rows):
    ids = [row[f"{side}_input_ids"] for side in SIDES for row in rows]
    labels = pad(rows)["labels"]
    padded = torch.tensor([own + [0] * (labels.shape[1] - len(own)) for own in ids])
    mask = torch.tensor([[1] * len(own) + [0] * (labels.shape[1] - len(own)) for own in ids])
    return {"input_ids": padded, "attention_mask": mask, "labels": labels}


class Words:
    @staticmethod
    def decode(ids, **options):
        return " ".join(map(str, ids))


def test_rows_of_which_only_template_tokens_are_left_are_skipped():
    whole = (([(30, 0)], True, 2), ([(40, 0)], False, 2))
    rows = rows_of([whole] * 3, template=True)
    rows[1]["chosen_labels"], rows[1]["chosen_input_ids"] = [IGNORE, IGNORE, 90, 91], [5, 6, 90, 91]
    losses, data = RowLosses(), Dataset.from_list(rows)
    assert len(keep_trainable(data, name="train", tokenizer=Words, losses=losses, template=QWEN)) == 2
    (loss,) = losses.record()["train"]["losses"]
    assert (loss["what"], loss["reason"], loss["rows"]) == ("skipped", NO_CANDIDATE, 1)
    assert len(keep_trainable(data, name="train", tokenizer=Words, losses=RowLosses())) == 3


def test_flags_of_other_tokens_are_refused():
    row = rows_of([(([(30, 0)], True, 2), ([(40, 0)], False, 2))], template=True)[0]
    row |= {"chosen_candidates": [True], "rejected_candidates": [True]}
    with pytest.raises(SepoError, match=r"1 candidate flags for a chosen response of 6 tokens"):
        selecting_collator(pad, method=resolve_method("sepo"))([row])
