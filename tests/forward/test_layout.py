"""Pairs in one row: every wanted token attends exactly to its own sequence, and no unneeded token is computed."""

import doctest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sepo.forward.shared_prompt
from sepo.forward.shared_prompt import is_right_padded, pair_layout, token_groups


@st.composite
def batches(draw):
    """Right-padded pairs of few distinct tokens, so that responses share prefixes, and their wanted positions."""
    pairs = draw(st.integers(1, 4))
    tokens = st.lists(st.integers(1, 3), min_size=1, max_size=6)
    rows = [[], []]
    for _ in range(pairs):
        prompt = draw(tokens)
        for side in rows:
            side.append((prompt, draw(tokens)))
    rows = rows[0] + rows[1]
    width = max(len(prompt) + len(response) for prompt, response in rows) + draw(st.integers(0, 3))
    ids, wanted = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width - 1, dtype=torch.bool)
    for index, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        ids[index, :end] = torch.tensor(prompt + response)
        for position in range(len(prompt) - 1, end - 1):
            wanted[index, position] = draw(st.booleans())
    return ids, wanted


def visible(layout, place):
    """Return the positions in the row that the token at ``place`` attends to, including itself at the end."""
    span = next(span for span in layout.spans if span.start <= place < span.end)
    if place < span.split:
        return list(range(span.start, place + 1))
    return [*range(span.start, span.start + span.shared), *range(span.split, place + 1)]


@given(batches())
def test_wanted_tokens_attend_to_their_own_sequence(batch):
    ids, wanted = batch
    layout = pair_layout(ids, wanted)
    row = ids.flatten()[layout.source]
    used = set()
    for index, position in wanted.nonzero().tolist():
        place = layout.placed[index, position].item()
        seen = visible(layout, place)
        assert row[seen].tolist() == ids[index, : position + 1].tolist()
        assert layout.position_ids[seen].tolist() == list(range(position + 1))
        used |= set(seen)
    alone = {layout.placed[index, 0].item() for index in range(len(ids)) if not wanted[index].any()}
    assert used | alone == set(range(layout.tokens))


@given(batches())
def test_a_whole_layout_has_every_token_of_the_batch(batch):
    ids, wanted = batch
    layout = pair_layout(ids, wanted, attended=ids != 0)
    assert torch.equal(layout.placed >= 0, ids != 0)
    row = ids.flatten()[layout.source]
    for index, position in (ids != 0).nonzero().tolist():
        seen = visible(layout, layout.placed[index, position].item())
        assert row[seen].tolist() == ids[index, : position + 1].tolist()


@given(batches())
def test_spans_are_adjacent(batch):
    ids, wanted = batch
    layout = pair_layout(ids, wanted)
    starts = [span.start for span in layout.spans] + [layout.tokens]
    assert starts[0] == 0
    assert [span.end for span in layout.spans] == starts[1:]


@given(st.lists(st.integers(1, 20)), st.integers(1, 30))
def test_groups_stay_within_the_budget(lengths, budget):
    groups = token_groups(lengths, budget)
    assert [index for group in groups for index in group] == list(range(len(lengths)))
    totals = [sum(lengths[index] for index in group) for group in groups]
    assert all(total <= budget or len(group) == 1 for total, group in zip(totals, groups, strict=True))
    # No two adjacent groups would have fitted into one.
    firsts = [lengths[group[0]] for group in groups[1:]]
    assert all(total + first > budget for total, first in zip(totals, firsts, strict=False))


@pytest.mark.parametrize(
    ("mask", "padded"),
    [([1, 1, 0], True), ([1, 1, 1], True), ([0, 1, 1], False), ([1, 0, 1], False), ([0, 0, 0], False)],
)
def test_right_padding_is_distinguished_from_other_masks(mask, padded):
    assert is_right_padded(torch.tensor([[1, 1, 1], mask])) is padded


def test_docstring_examples():
    assert doctest.testmod(sepo.forward.shared_prompt).failed == 0
