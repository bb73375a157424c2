"""Units, scopes and the data set's threshold against slow twins, and their invariances."""

import doctest
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sepo.selection.units
import sepo.text.spans
import sepo.text.steps
from sepo.errors import SepoError
from sepo.selection.scopes import Responses, select_pairs, select_units
from sepo.selection.scores import random_scores, uncertainty_scores
from sepo.selection.select import select_tokens
from sepo.selection.threshold import dataset_threshold
from sepo.selection.units import UNITS, pick_spans, pick_steps, pick_tokens
from sepo.text.spans import Span, span_weights
from sepo.text.steps import step_ids

RATIOS = st.one_of(st.floats(0.01, 1.0), st.sampled_from([0.1, 0.3, 0.5, 1.0]))
SCORES = st.one_of(st.sampled_from([-1.0, -0.0, 0.0, 0.5]), st.floats(-100, 100, width=32))
RESPONSES = st.lists(st.lists(SCORES, min_size=1, max_size=14), min_size=1, max_size=2)


def owners(group):
    """Return (response, position) of every token of a group."""
    return [(number, place) for number, response in enumerate(group) for place in range(len(response))]


def runs_of(flags):
    """Return the lengths of the maximal runs of True."""
    lengths, length = [], 0
    for flag in [*flags, False]:
        if flag:
            length += 1
        elif length:
            lengths.append(length)
            length = 0
    return lengths


def split(group, flat):
    parts, start = [], 0
    for response in group:
        parts.append(flat[start : start + len(response)])
        start += len(response)
    return parts


def slow_tokens(group, budget):
    flat = [score for response in group for score in response]
    where = owners(group)
    order = sorted(range(len(flat)), key=lambda t: (-flat[t], t))
    kept = set(order[: max(budget, len(group))])
    for number in range(len(group)):  # a response without a token replaces the worst selected token
        if not any(where[t][0] == number for t in kept):
            kept.remove(max(kept, key=order.index))
            kept.add(next(t for t in order if where[t][0] == number))
    return [t in kept for t in range(len(flat))]


def slow_grown(group, taken, seed, minimum):
    """Return the tokens of the run around a seed, grown one token at a time on sets, without selected tokens."""
    flat, where = [score for response in group for score in response], owners(group)
    number = where[seed][0]
    run = {seed}
    while True:
        edges = [t for t in (min(run) - 1, max(run) + 1) if 0 <= t < len(flat) and where[t][0] == number]
        touching = [t for t in edges if t in taken]
        if len(run) >= min(minimum, len(group[number])) or not edges:
            return run - taken
        run.add(touching[0] if touching else max(edges, key=lambda t: (flat[t], -t)))


def slow_spans(group, budget, minimum):
    flat, where = [score for response in group for score in response], owners(group)
    order = sorted(range(len(flat)), key=lambda t: (-flat[t], t))
    taken = set()
    for number in range(len(group)):
        taken |= slow_grown(group, taken, next(t for t in order if where[t][0] == number), minimum)
    for seed in order:
        if seed not in taken:
            run = slow_grown(group, taken, seed, minimum)
            if len(taken) + len(run) > budget:
                break
            taken |= run
    while len(taken) < min(budget, len(flat)):
        near = [
            t for t in order
            if t not in taken and any(s in taken and where[s][0] == where[t][0] for s in (t - 1, t + 1))
        ]  # fmt: skip
        taken.add(near[0])
    return [t in taken for t in range(len(flat))]


def slow_steps(group, steps, budget):
    where = owners(group)
    flat = {place: group[place[0]][place[1]] for place in where}
    members = {}
    for number, place in where:
        members.setdefault((number, steps[number][place]), []).append((number, place))
    ranked = sorted(members, key=lambda step: (-math.fsum(flat[p] for p in members[step]) / len(members[step]), step))
    kept = [next(step for step in ranked if step[0] == number) for number in range(len(group))]
    for step in ranked:
        if step not in kept and sum(len(members[s]) for s in kept) < budget:
            kept.append(step)
    return [(number, steps[number][place]) in kept for number, place in where]


@settings(max_examples=150)
@given(group=RESPONSES, budget=st.integers(1, 30))
def test_tokens_equal_their_slow_twin(group, budget):
    picked = pick_tokens(group, budget)
    assert picked == slow_tokens(group, budget)
    assert sum(picked) == min(len(picked), max(budget, len(group)))
    assert all(any(part) for part in split(group, picked))


@settings(max_examples=200)
@given(group=RESPONSES, budget=st.integers(1, 30), minimum=st.integers(1, 5))
def test_spans_equal_their_slow_twin_with_minimum_length_and_exact_count(group, budget, minimum):
    picked = pick_spans(group, budget, minimum=minimum)
    assert picked == slow_spans(group, budget, minimum)
    least = sum(min(minimum, len(response)) for response in group)
    assert sum(picked) == min(len(picked), max(budget, least))
    for response, part in zip(group, split(group, picked), strict=True):
        assert runs_of(part)
        assert all(length >= min(minimum, len(response)) for length in runs_of(part))
    if minimum == 1 and len(group) == 1:
        assert picked == pick_tokens(group, budget)


@st.composite
def stepped(draw):
    group = draw(RESPONSES)
    steps = []
    for response in group:
        falls = draw(st.lists(st.booleans(), min_size=len(response), max_size=len(response)))
        steps.append([sum(falls[1 : place + 1]) for place in range(len(response))])
    return group, steps


@settings(max_examples=150)
@given(case=stepped(), budget=st.integers(1, 30))
def test_steps_equal_their_slow_twin_and_are_whole(case, budget):
    group, steps = case
    picked = pick_steps(group, steps, budget)
    assert picked == slow_steps(group, steps, budget)
    lengths = []
    for part, numbers in zip(split(group, picked), steps, strict=True):
        assert any(part)
        for number in set(numbers):
            flags = {kept for kept, own in zip(part, numbers, strict=True) if own == number}
            assert len(flags) == 1
            lengths += [numbers.count(number)] if flags == {True} else []
    assert sum(picked) >= min(budget, len(picked))
    if len(lengths) > len(group):  # the last one reached the budget
        assert sum(lengths) - min(budget, len(picked)) < max(lengths)


# --- tensors: padding, batch, masks, ratio one ------------------------------------------------------------------------


@st.composite
def batches(draw):
    """Two sides of a batch with arbitrary values in the padding, holes in the masks, and steps."""
    rows = draw(st.integers(1, 3))
    sides = []
    for largest in (True, draw(st.booleans())):
        width = draw(st.integers(1, 12))
        mask = [draw(st.lists(st.booleans(), min_size=width, max_size=width).filter(any)) for _ in range(rows)]
        scores = [[draw(SCORES) if counted else math.nan for counted in row] for row in mask]
        steps = [sorted(draw(st.lists(st.integers(0, 3), min_size=width, max_size=width))) for _ in range(rows)]
        sides.append((torch.tensor(scores), torch.tensor(mask), torch.tensor(steps), largest))
    return sides


def responses(side, ratio, rows=slice(None), pad=(0, 0), junk=math.nan):
    scores, mask, steps, largest = side
    scores = torch.nn.functional.pad(scores[rows].masked_fill(~mask[rows], junk), pad, value=junk)
    mask, steps = (torch.nn.functional.pad(tensor[rows], pad) for tensor in (mask, steps))
    return Responses(scores=scores, mask=mask, ratio=ratio, largest=largest, what="rejected response", steps=steps)


@pytest.mark.parametrize("unit", UNITS)
@settings(max_examples=40)
@given(sides=batches(), ratio=RATIOS, pad=st.tuples(st.integers(0, 2), st.integers(0, 2)), data=st.data())
def test_padding_and_batch_do_not_matter(unit, sides, ratio, pad, data):
    rows = len(sides[0][0])
    order = torch.tensor(data.draw(st.permutations(range(rows))))
    junk = data.draw(st.sampled_from([0.0, math.nan, math.inf, -1e30]))
    options = {"unit": unit, "span_tokens": 2}
    alone = [select_units(responses(side, ratio), **options) for side in sides]
    shared = select_pairs(*(responses(side, ratio) for side in sides), **options)
    for side, selection in zip(sides, alone, strict=True):
        moved = select_units(responses(side, ratio, order, pad, junk), **options)
        assert torch.equal(moved, torch.nn.functional.pad(selection[order], pad))
        assert not (selection & ~side[1]).any()
        assert selection.any(-1).all()
    again = select_pairs(*(responses(side, ratio, order, pad, junk) for side in sides), **options)
    for first, second in zip(again, shared, strict=True):
        assert torch.equal(first, torch.nn.functional.pad(second[order], pad))
        assert second.any(-1).all()


@pytest.mark.parametrize("unit", UNITS)
@settings(max_examples=20)
@given(sides=batches())
def test_ratio_one_selects_every_counted_token(unit, sides):
    whole = [responses(side, 1.0) for side in sides]
    masks = [side[1] for side in sides]
    assert all(torch.equal(a, b) for a, b in zip(select_pairs(*whole, unit=unit), masks, strict=True))
    assert all(torch.equal(select_units(side, unit=unit), mask) for side, mask in zip(whole, masks, strict=True))


@settings(max_examples=60)
@given(sides=batches(), ratio=RATIOS)
def test_the_unit_token_of_a_response_is_the_vectorized_selection(sides, ratio):
    for side in sides:
        scores, mask, _, largest = side
        expected = select_tokens(scores, mask, ratio=ratio, largest=largest)
        assert torch.equal(select_units(responses(side, ratio)), expected)


@settings(max_examples=60)
@given(sides=batches(), ratio=RATIOS)
def test_a_pair_shares_one_budget(sides, ratio):
    chosen, rejected = select_pairs(*(responses(side, ratio) for side in sides))
    counted = sides[0][1].sum(-1) + sides[1][1].sum(-1)
    for row, total in enumerate(counted.tolist()):
        kept = int(chosen[row].sum() + rejected[row].sum())
        assert kept == min(total, max(2, math.floor(ratio * total + 1e-9)))
    sign = 1.0 if sides[1][3] else -1.0
    for row in range(len(counted)):
        won, lost = sides[0][0][row], sign * sides[1][0][row]
        if chosen[row].sum() > 1 and (sides[1][1][row] & ~rejected[row]).any():
            assert won[chosen[row]].min() >= lost[sides[1][1][row] & ~rejected[row]].max()


def test_inputs_that_do_not_match_raise():
    mask = torch.ones(2, 3, dtype=torch.bool)
    side = Responses(scores=torch.zeros(2, 3), mask=mask, ratio=0.5, largest=True, what="chosen response")
    with pytest.raises(
        SepoError, match=r"steps of the chosen responses are missing, expected the mask's shape \[2, 3\]"
    ):
        select_units(side, unit="step")
    with pytest.raises(SepoError, match="2 chosen and 1 rejected responses, expected pairs"):
        select_pairs(side, Responses(scores=torch.zeros(1, 3), mask=mask[:1], ratio=0.5, largest=True))
    counted = Responses(scores=torch.zeros(2, 3), mask=mask, ratio=0.5, largest=True, counts=torch.tensor([1]))
    with pytest.raises(SepoError, match=r"counts of the responses have shape \[1\], expected \[2\]"):
        select_units(counted)
    with pytest.raises(SepoError, match="row 0, position 1 is nan"):
        select_units(Responses(torch.tensor([[0.0, math.nan]]), mask[:1, :2], 0.5, True))


# --- the data set's threshold -----------------------------------------------------------------------------------------

DATASETS = st.lists(st.lists(SCORES, min_size=1, max_size=8), min_size=1, max_size=12)


def pieces(rows, size):
    """Yield the rows in chunks, as (flat scores, lengths)."""
    return [
        (
            torch.tensor([x for row in rows[i : i + size] for x in row], dtype=torch.float32),
            torch.tensor([len(row) for row in rows[i : i + size]]),
        )
        for i in range(0, len(rows), size)
    ]


def threshold_of(rows, ratio, largest, size=3):
    return dataset_threshold(lambda: (flat for flat, _ in pieces(rows, size)), ratio=ratio, largest=largest)


def counts_of(threshold, rows, size=3):
    return torch.cat(list(threshold.counts(pieces(rows, size)))).tolist()


@settings(max_examples=150)
@given(rows=DATASETS, ratio=RATIOS, largest=st.booleans(), size=st.integers(1, 5))
def test_the_threshold_equals_the_global_sort(rows, ratio, largest, size):
    flat = sorted((x for row in rows for x in row), reverse=largest)
    wanted = max(1, math.floor(ratio * len(flat) + 1e-9))
    threshold = threshold_of(rows, ratio, largest)
    assert threshold.value == flat[wanted - 1]
    assert threshold.ties == flat.count(threshold.value)
    assert threshold.kept_ties == flat[:wanted].count(threshold.value)
    assert threshold == threshold_of(rows[::-1], ratio, largest, size)
    # The budgets of the rows: scores above the threshold, and ties spread by a running floor.
    kept, seen, given_out, forced = [], 0, 0, 0
    for row in rows:
        better = sum(x > threshold.value if largest else x < threshold.value for x in row)
        seen += row.count(threshold.value)
        due = math.floor(threshold.kept_ties * seen / threshold.ties)
        own = better + due - given_out
        kept.append(max(1, own))
        forced += own == 0
        given_out = due
    assert counts_of(threshold, rows, size) == kept
    assert sum(kept) == wanted + forced


def test_without_ties_the_kept_tokens_are_those_of_the_global_sort():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(n, generator=generator).tolist() for n in (7, 30, 1, 12)]
    threshold = threshold_of(rows, 0.3, True)
    counts = counts_of(threshold, rows)
    width = max(map(len, rows))
    scores = torch.tensor([row + [math.nan] * (width - len(row)) for row in rows])
    mask = ~scores.isnan()
    side = Responses(scores=scores, mask=mask, ratio=0.3, largest=True, counts=torch.tensor(counts))
    selection = select_units(side)
    best = set(sorted((x for row in rows for x in row), reverse=True)[:15])
    for row, kept in zip(scores, selection, strict=True):
        expected = [x.item() in best for x in row]
        assert kept.tolist() == expected or (not any(expected) and kept.sum() == 1)


def test_thresholds_of_no_scores_and_of_nan_raise():
    with pytest.raises(SepoError, match="no scored token"):
        dataset_threshold(list, ratio=0.5, largest=True)
    with pytest.raises(SepoError, match="a token score is nan"):
        dataset_threshold(lambda: [torch.tensor([0.0, math.nan])], ratio=0.5, largest=True)


# --- scores -----------------------------------------------------------------------------------------------------------


def test_random_scores_depend_on_seed_side_and_tokens_only():
    first = random_scores([5, 6, 7, 8, 9], start=2, seed=1, side="chosen")
    assert torch.equal(first, random_scores([5, 6, 7, 8, 9], start=2, seed=1, side="chosen"))
    others = [
        random_scores([5, 6, 7, 8, 9], start=2, seed=2, side="chosen"),
        random_scores([5, 6, 7, 8, 9], start=2, seed=1, side="rejected"),
        random_scores([4, 6, 7, 8, 9], start=2, seed=1, side="chosen"),
    ]
    assert all(first.shape == other.shape and not torch.equal(first, other) for other in others)
    many = random_scores(list(range(5000)), start=0, seed=0, side="chosen")
    assert many.dtype == torch.float32
    assert 0 <= many.min() < 0.01
    assert 0.99 < many.max() < 1
    assert abs(many.mean() - 0.5) < 0.02
    assert len(set(many.tolist())) > 4990
    assert random_scores([1], start=1, seed=0, side="chosen").shape == (0,)


def test_confidence_scores_are_surprisal():
    logps = torch.tensor([[-0.5, -3.0]], requires_grad=True)
    scores = uncertainty_scores(logps)
    assert scores.tolist() == [[0.5, 3.0]]
    assert not scores.requires_grad
    assert uncertainty_scores(logps.bfloat16()).dtype == torch.float32


SPANS = st.lists(
    st.tuples(st.integers(0, 18), st.integers(1, 6), st.floats(-2, 2)).map(lambda s: Span(s[0], s[0] + s[1], s[2])),
    max_size=5,
)


@settings(max_examples=150)
@given(lengths=st.lists(st.integers(0, 4), max_size=10), spans=SPANS)
def test_span_weights_equal_their_slow_twin(lengths, spans):
    offsets, start = [], 0
    for length in lengths:
        offsets.append((start, start + length))
        start += length
    expected = []
    for begin, end in offsets:
        over = [s.weight for s in spans if any(s.start <= character < s.end for character in range(begin, end))]
        expected.append(max(over, default=0.0))
    assert span_weights(offsets, spans) == expected


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (["Yes", ".", " No", "!"], ["Yes.", " No!"]),
        (["It", " is", " 3", ".", "5", "."], ["It is 3.5."]),
        (["one", "\n", "\n", "  ", "two", "\n"], ["one\n\n  ", "two\n"]),
        (["He", " said", ' "', "no", '."', " Then"], ['He said "no."', " Then"]),
        (["1", ".", " first", "\n", "2", ".", " second"], ["1. first\n", "2. second"]),
        (["好", "。", "是", "的", "。"], ["好。", "是的。"]),
        (["Wait", "...", " what", "?", "!", " ok"], ["Wait...", " what?!", " ok"]),
        (["\n", "Hello", " you", ".\n\n", "Bye"], ["\nHello you.\n\n", "Bye"]),
        (["Done", ".", "", "\n"], ["Done.\n"]),  # the empty piece is an end of turn
        (["x"], ["x"]),
    ],
)
def test_steps_are_lines_and_sentences(text, steps):
    numbers = step_ids(text)
    assert numbers == sorted(numbers)
    found = [
        "".join(piece for piece, n in zip(text, numbers, strict=True) if n == step) for step in sorted(set(numbers))
    ]
    assert found == steps
    assert sorted(set(numbers)) == list(range(len(steps)))


@pytest.mark.parametrize("module", [sepo.selection.units, sepo.text.steps, sepo.text.spans])
def test_examples_run(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
