"""Token selection against a slow twin, and token scores."""

import doctest
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sepo.selection.select
from sepo.errors import SepoError
from sepo.selection.scores import alignment_scores, contrastive_rewards, oracle_scores
from sepo.selection.select import select_tokens

RATIOS = st.one_of(st.floats(0.001, 1.0), st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9, 1.0]))
# Few distinct values, so that ties are common.
SCORES = st.one_of(st.sampled_from([-1.0, -0.0, 0.0, 0.5, 2.0]), st.floats(-1e4, 1e4, width=32))
PADDING = [0.0, math.nan, math.inf, -math.inf, 1e30, -1e30]


@st.composite
def batches(draw):
    """Rows of (score, counted), with counted tokens anywhere in the row and arbitrary scores elsewhere."""
    width = draw(st.integers(1, 24))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        mask = draw(st.lists(st.booleans(), min_size=width, max_size=width).filter(any))
        rows.append([(draw(SCORES if counted else st.sampled_from(PADDING)), counted) for counted in mask])
    return rows


def tensors(rows, dtype=torch.float64):
    scores = torch.tensor([[score for score, _ in row] for row in rows], dtype=dtype)
    return scores, torch.tensor([[counted for _, counted in row] for row in rows])


def slow_floor(rows, ratio, largest):
    """Select row by row: sort (score, position), keep the first n."""
    selections = []
    for row in rows:
        counted = [(-score if largest else score, t) for t, (score, counts) in enumerate(row) if counts]
        n = max(1, math.floor(ratio * len(counted) + 1e-9))
        kept = {t for _, t in sorted(counted)[:n]}
        selections.append([t in kept for t in range(len(row))])
    return selections


def slow_quantile(rows, ratio, largest):
    """Select row by row, with torch.quantile in float64."""
    selections = []
    for row in rows:
        counted = torch.tensor([score for score, counts in row if counts], dtype=torch.float64)
        threshold = counted.quantile(1.0 - ratio if largest else ratio).item()
        reaches = [score >= threshold if largest else score <= threshold for score, _ in row]
        selections.append([good and counts for good, (_, counts) in zip(reaches, row, strict=True)])
    return selections


TWINS = {"floor": slow_floor, "quantile": slow_quantile}


@pytest.mark.parametrize("rule", TWINS)
@settings(max_examples=120)
@given(rows=batches(), ratio=RATIOS, largest=st.booleans())
def test_selection_equals_its_slow_twin(rule, rows, ratio, largest):
    scores, mask = tensors(rows)
    selection = select_tokens(scores, mask, ratio=ratio, largest=largest, rule=rule)
    assert selection.dtype == torch.bool
    assert selection.tolist() == TWINS[rule](rows, ratio, largest)
    assert not (selection & ~mask).any()
    assert selection.any(dim=-1).all()


@pytest.mark.parametrize("rule", TWINS)
@settings(max_examples=40)
@given(rows=batches(), ratio=RATIOS, largest=st.booleans(), junk=st.sampled_from(PADDING), data=st.data())
def test_padding_and_batch_do_not_matter(rule, rows, ratio, largest, junk, data):
    scores, mask = tensors(rows)
    expected = select_tokens(scores, mask, ratio=ratio, largest=largest, rule=rule)

    def again(scores, mask):
        return select_tokens(scores, mask, ratio=ratio, largest=largest, rule=rule)

    left, right = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    pad = torch.nn.functional.pad
    padded = again(pad(scores.masked_fill(~mask, junk), (left, right), value=junk), pad(mask, (left, right)))
    assert torch.equal(padded, pad(expected, (left, right)))
    order = torch.tensor(data.draw(st.permutations(range(len(rows)))))
    assert torch.equal(again(scores[order], mask[order]), expected[order])
    assert all(torch.equal(again(scores[i : i + 1], mask[i : i + 1])[0], expected[i]) for i in range(len(rows)))


@pytest.mark.parametrize("rule", TWINS)
@settings(max_examples=25)
@given(rows=batches(), largest=st.booleans())
def test_ratio_one_selects_every_counted_token(rule, rows, largest):
    scores, mask = tensors(rows)
    assert torch.equal(select_tokens(scores, mask, ratio=1.0, largest=largest, rule=rule), mask)


@pytest.mark.parametrize("rule", TWINS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_compared_exactly(rule, dtype):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(8, 97, generator=generator).to(dtype)  # many ties in bf16
    mask = torch.rand(8, 97, generator=generator) < 0.8
    rows = [list(zip(s, m, strict=True)) for s, m in zip(scores.double().tolist(), mask.tolist(), strict=True)]
    for largest in (True, False):
        selection = select_tokens(scores, mask, ratio=0.4, largest=largest, rule=rule)
        assert selection.tolist() == TWINS[rule](rows, 0.4, largest)


@pytest.mark.parametrize(("n_tokens", "ratio", "expected"), [(10, 0.3, 3), (10, 0.7, 7), (3, 0.1, 1), (100, 0.29, 29)])
def test_floor_counts_decimal_ratios_as_written(n_tokens, ratio, expected):
    scores, mask = torch.arange(float(n_tokens))[None], torch.ones(1, n_tokens, dtype=torch.bool)
    assert select_tokens(scores, mask, ratio=ratio, largest=True).sum() == expected


def test_ties_go_to_the_earlier_token_and_negative_zero_is_zero():
    mask = torch.ones(1, 4, dtype=torch.bool)
    scores = torch.tensor([[0.0, -0.0, 0.0, -0.0]])
    for largest in (True, False):
        assert select_tokens(scores, mask, ratio=0.5, largest=largest).tolist() == [[True, True, False, False]]
        assert select_tokens(scores, mask, ratio=0.5, largest=largest, rule="quantile").all()


def test_scores_keep_no_graph():
    scores = torch.randn(2, 5, requires_grad=True)
    assert not select_tokens(scores, torch.ones(2, 5, dtype=torch.bool), ratio=0.4, largest=True).requires_grad


MASK = torch.tensor([[True, True, False], [True, False, True]])
SCORE = torch.zeros(2, 3)


@pytest.mark.parametrize("ratio", [0, 0.0, -0.1, 1.0001, math.nan, math.inf, True, "0.3", None])
def test_a_ratio_out_of_range_raises(ratio):
    with pytest.raises(SepoError, match=r"ratio is .*expected a number in \(0, 1\]"):
        select_tokens(SCORE, MASK, ratio=ratio, largest=True)


def test_an_unknown_rule_raises_with_the_nearest():
    with pytest.raises(SepoError, match=r"'flor', expected one of floor, quantile.*Did you mean 'floor'"):
        select_tokens(SCORE, MASK, ratio=0.5, largest=True, rule="flor")


@pytest.mark.parametrize("rule", TWINS)
def test_a_row_without_counted_tokens_is_named(rule):
    mask = MASK.clone()
    mask[1] = False
    with pytest.raises(SepoError, match="rejected response in row 1 has 0 counted tokens"):
        select_tokens(SCORE, mask, ratio=0.5, largest=True, rule=rule, what="rejected response")
    with pytest.raises(SepoError, match="row 0 has 0 counted tokens"):
        select_tokens(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool), ratio=0.5, largest=True, rule=rule)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_named(value):
    scores = SCORE.clone()
    scores[:, 2] = value  # row 0 masks this position
    with pytest.raises(SepoError, match=f"row 1, position 2 is {value}"):
        select_tokens(scores, MASK, ratio=0.5, largest=True)


def test_shapes_and_dtypes_are_checked():
    with pytest.raises(SepoError, match=r"shape \[2, 4\], expected that of the mask, \[2, 3\]"):
        select_tokens(torch.zeros(2, 4), MASK, ratio=0.5, largest=True)
    with pytest.raises(SepoError, match=r"torch.int64, expected torch.bool"):
        select_tokens(SCORE, MASK.long(), ratio=0.5, largest=True)
    with pytest.raises(SepoError, match=r"shape \[3\], expected \[B, T\]"):
        select_tokens(SCORE[0], MASK[0], ratio=0.5, largest=True)
    with pytest.raises(SepoError, match="expected a floating dtype"):
        select_tokens(SCORE.long(), MASK, ratio=0.5, largest=True)


def test_scores_are_the_papers_equations():
    first, second = torch.tensor([[-1.0, -2.0]], requires_grad=True), torch.tensor([[-3.0, -0.5]])
    assert oracle_scores(first, second).tolist() == [[2.0, -1.5]]
    assert alignment_scores(first, second, chosen=True).tolist() == [[-2.0, 1.5]]
    assert alignment_scores(first, second, chosen=False).tolist() == [[2.0, -1.5]]
    rewards = contrastive_rewards(first, second)
    assert rewards.tolist() == [
        [pytest.approx(1 / (1 + math.exp(-2)) - 0.5), pytest.approx(1 / (1 + math.exp(1.5)) - 0.5)]
    ]
    assert not any(scores.requires_grad for scores in (oracle_scores(first, second), rewards))
    extreme = contrastive_rewards(torch.tensor([[0.0, -1e4]]), torch.tensor([[-1e4, 0.0]]))
    assert extreme.tolist() == [[0.5, -0.5]]


def test_scores_widen_half_precision_before_they_subtract():
    first, second = (torch.tensor([[x]], dtype=torch.bfloat16) for x in (-1.0, -0.0078125))
    assert oracle_scores(first, second).dtype == torch.float32
    assert oracle_scores(first, second).item() == -0.9921875
    with pytest.raises(SepoError, match=r"oracle_logps has shape \[1, 1\] and base_logps \[1, 2\]"):
        oracle_scores(first, second.expand(1, 2))


def test_examples_run():
    result = doctest.testmod(sepo.selection.select, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
