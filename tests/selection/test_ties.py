"""Ties of live scores: no preference for a position, the same for any batch; other selections are unchanged."""

import contextlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from sepo.objectives import resolve_method
from sepo.selection.scopes import Responses, select_pairs, select_units
from sepo.selection.select import select_tokens
from sepo.selection.ties import tie_order
from sepo.selection.units import pick_steps, ranks
from sepo.training import preference_step
from tests.support.steps import collate, make_pairs

RATIO = 0.3


def responses(count, width=40, seed=0):
    """Return token ids of responses of many lengths after prompts of many lengths, and the mask of the responses."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 300, (count, width), generator=draw)
    starts = torch.randint(1, 8, (count, 1), generator=draw)
    ends = torch.randint(20, width + 1, (count, 1), generator=draw)
    at = torch.arange(width)
    return ids, (at >= starts) & (at < ends)


def places(selection, mask):
    """Return the relative places, in [0, 1), of the selected tokens in their responses."""
    counts = mask.sum(-1, keepdim=True)
    return ((mask.cumsum(-1) - 0.5) / counts)[selection]


def selected(scores, mask, ties, unit, largest=True):
    if unit == "token":
        return select_tokens(scores, mask, ratio=RATIO, largest=largest, ties=ties)
    steps = (mask.cumsum(-1) // 4).long()
    return select_units(Responses(scores, mask, RATIO, largest, steps=steps, ties=ties), unit=unit)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("unit", ["token", "span", "step"])
def test_tied_tokens_are_selected_anywhere_in_a_response(unit, largest):
    """The mean place of n tokens drawn evenly from [0, 1) is 1/2, with a standard error of sqrt(1 / 12 n)."""
    ids, mask = responses(400)
    found = places(selected(torch.zeros(ids.shape), mask, tie_order(ids, mask), unit, largest), mask)
    units = len(found) / {"token": 1, "span": 3, "step": 4}[unit]
    assert found.mean().item() == pytest.approx(0.5, abs=4 * (1 / 12 / units) ** 0.5)
    assert found.histc(4, 0, 1).min() > 0.8 * len(found) / 4
    first = places(selected(torch.zeros(ids.shape), mask, None, unit, largest), mask)
    assert first.mean().item() < 0.25  # without an order, the first tokens of each response


def test_pairs_share_their_budget_between_tied_responses():
    (ids, mask), (others, other_mask) = responses(200), responses(200, seed=1)
    sides = [Responses(torch.zeros(i.shape), m, RATIO, True, ties=tie_order(i, m))
             for i, m in ((ids, mask), (others, other_mask))]  # fmt: skip
    chosen, rejected = select_pairs(*sides)
    assert chosen.sum().item() == pytest.approx(rejected.sum().item(), rel=0.2)


@settings(max_examples=60)
@given(
    scores=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=20),
    unit=st.sampled_from(["token", "span", "step"]),
    largest=st.booleans(),
    seed=st.integers(0, 99),
)
def test_only_equal_scores_are_reordered(scores, unit, largest, seed):
    """The selected scores are the same with any order, and distinct scores select the same tokens."""
    row = torch.tensor([scores])
    mask = torch.ones(row.shape, dtype=torch.bool)
    ties = tie_order(torch.randint(0, 300, row.shape, generator=torch.Generator().manual_seed(seed)), mask)
    if unit == "token":
        found, plain = (select_tokens(row, mask, ratio=RATIO, largest=largest, ties=t) for t in (ties, None))
        assert sorted(row[found].tolist()) == sorted(row[plain].tolist())
    distinct = row + torch.arange(row.shape[1]) * 1e-3
    assert selected(distinct, mask, ties, unit, largest).equal(selected(distinct, mask, None, unit, largest))


def test_ranks_and_steps_by_hand():
    assert ranks([[1.0, 0.0, 1.0], [1.0]], [[2, 9, 1], [3]]) == [[2.0, 0.0, 3.0], [1.0]]
    scores, steps = [[0.0, 0.0, 0.0, 0.0]], [[0, 0, 1, 1]]
    assert pick_steps(scores, steps, 1, ties=[[5, 0, 4, 9]]) == [False, False, True, True]
    assert pick_steps(scores, steps, 1) == [True, True, False, False]


def test_the_order_depends_on_the_response_alone():
    ids, mask = responses(6)
    order = tie_order(ids, mask)
    other = ids.where(mask, 7)
    assert torch.equal(tie_order(other, mask)[mask], order[mask])  # neither on the prompt nor on padding
    assert torch.equal(tie_order(ids.flip(0), mask.flip(0)), order.flip(0))
    left, where = (torch.nn.functional.pad(x, (5, 0)) for x in (ids, mask))
    assert torch.equal(tie_order(left, where)[where], order[mask])
    changed = ids.clone()
    changed[mask] = ids[mask] + 1
    assert not (tie_order(changed, mask)[mask] == order[mask]).any()


def test_the_order_is_fixed():
    """A run that is repeated with a later version selects the same tokens."""
    ids, mask = torch.tensor([[4, 5, 6, 4, 5]]), torch.tensor([[False, True, True, True, True]])
    assert tie_order(ids, mask)[mask].tolist() == [
        7376240186387305062,
        3421360805156638349,
        7638757939724526927,
        6118862222405337916,
    ]


@pytest.mark.parametrize("unit", ["token", "span"])
def test_a_policy_that_equals_its_reference_is_not_trained_on_first_tokens(world, unit):
    policy = LlamaForCausalLM.from_pretrained(world / "policy", dtype=torch.float64).eval()
    method = resolve_method("selective_dpo", unit=unit)
    pairs = make_pairs(12, seed=3)
    seen = {}

    def selections(rows, extra):
        kept = []
        preference_step(
            policy, collate(rows, method, extra=extra), method=method,
            reference=lambda: contextlib.nullcontext(policy), watch=kept.append,
        )  # fmt: skip
        (tokens,) = kept
        assert torch.equal(tokens.policy_logps, tokens.ref_logps)
        for index in range(2 * len(rows)):
            response = tokens.batch["labels"][index, 1:] != -100
            yield index, tokens.selection[index][response].tolist()

    first = 0
    for index, kept in selections(pairs, 0):
        seen[index] = kept
        first += kept == sorted(kept, reverse=True)
    assert first < 16  # of 24 responses, some of which have few tokens
    for index, kept in selections(pairs[:5], 6):  # another batch, more padding
        assert kept == seen[index if index < 5 else index - 5 + 12]
