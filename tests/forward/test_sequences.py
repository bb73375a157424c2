"""Oracle scores against a slow loop over single rows with full logits, and their batches."""

import contextlib
import copy
import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from sepo.errors import SepoError
from sepo.forward import sequences as scoring
from sepo.forward import sharing_support as sharing
from sepo.forward.sequences import OracleScorer, ScoredSequence, ScoringModel, length_batches
from tests.support.tolerance import SCORE


@pytest.fixture(scope="module")
def models(world):
    """Oracle and base in float32."""
    return tuple(
        LlamaForCausalLM.from_pretrained(world / name, dtype=torch.float32).eval() for name in ("oracle", "base")
    )


@pytest.fixture(scope="module")
def sequences():
    """Rows of many lengths, including the shortest possible, a whole-row response and an empty one."""
    draw = random.Random(0)
    rows = [ScoredSequence([5, 6], 1), ScoredSequence([7], 1), ScoredSequence([8, 9, 10], 3)]
    for length in [3, 3, 17, 40, 8, 25, 12, 12]:
        ids = [draw.randrange(3, 300) for _ in range(length)]
        rows.append(ScoredSequence(ids, draw.randrange(1, length)))
    return rows


@torch.no_grad()
def slow_log_probs(model, sequence):
    """One row, one token at a time, in float64."""
    log_probs = model(torch.tensor([sequence.input_ids])).logits[0].log_softmax(-1)
    places = range(sequence.response_start, len(sequence.input_ids))
    return torch.stack([log_probs[t - 1, sequence.input_ids[t]] for t in places]) if places else torch.zeros(0).double()


@pytest.fixture(scope="module")
def slow_scores(models, sequences):
    oracle, base = (copy.deepcopy(model).double() for model in models)
    return [slow_log_probs(oracle, sequence) - slow_log_probs(base, sequence) for sequence in sequences]


def scorer(oracle, base, batch_tokens=64, **settings):
    always = contextlib.nullcontext
    models = {"oracle": ScoringModel(oracle, always), "base": ScoringModel(base, always)}
    return OracleScorer(**models, batch_tokens=batch_tokens, **settings)


def assert_scores(actual, expected):
    assert [scores.dtype for scores in actual] == [torch.float32] * len(actual)
    for result, target in zip(actual, expected, strict=True):
        torch.testing.assert_close(result.double(), target, rtol=0, atol=SCORE)


@pytest.mark.parametrize("chunk_tokens", [None, 1])
@pytest.mark.parametrize("batch_tokens", [1, 64, 10_000])
def test_scores_equal_the_slow_loop(models, sequences, slow_scores, batch_tokens, chunk_tokens):
    batches = []
    scores = scorer(*models, batch_tokens, chunk_tokens=chunk_tokens).score(sequences, on_batch=batches.append)
    assert_scores(scores, slow_scores)
    assert max(scores.abs().max() for scores in slow_scores if len(scores)) > 0.1
    assert sum(batches) == len(sequences)


@pytest.mark.parametrize("batch_tokens", [1, 64, 10_000])
def test_pairs_share_their_prompts(models, batch_tokens, monkeypatch):
    """Prompts of many lengths, a pair with a common prefix, one of equal responses, and empty responses."""
    draw = random.Random(7)
    sides = [[], []]
    for number in range(9):
        prompt = [draw.randrange(3, 300) for _ in range(draw.randrange(1, 12))]
        responses = [[draw.randrange(3, 300) for _ in range(draw.randrange(0, 9))] for _ in sides]
        if number == 4:
            responses[1] = responses[0][:1] + responses[1]
        if number == 5:
            responses[1] = responses[0]
        for side, response in zip(sides, responses, strict=True):
            side.append(ScoredSequence(prompt + response, len(prompt)))
    sequences = sides[0] + sides[1]
    rows = []
    monkeypatch.setattr(scoring, "layout_for", lambda *given: rows.append(sharing.layout_for(*given)) or rows[-1])
    done = []
    scores = scorer(*models, batch_tokens).score(sequences, pairs=True, on_batch=done.append)
    oracle, base = (copy.deepcopy(model).double() for model in models)
    assert_scores(scores, [slow_log_probs(oracle, one) - slow_log_probs(base, one) for one in sequences])
    assert sum(done) == len(sequences)
    assert None not in rows
    # Both models: less than every sequence on its own.
    assert sum(layout.tokens for layout in rows) < 2 * sum(len(one.input_ids) for one in sequences)


def test_order_does_not_matter(models, sequences, slow_scores):
    order = random.Random(1).sample(range(len(sequences)), len(sequences))
    scores = scorer(*models).score([sequences[index] for index in order])
    assert_scores(scores, [slow_scores[index] for index in order])


def test_one_set_of_weights_with_an_adapter_on_and_off(models, sequences):
    torch.manual_seed(2)
    adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    shared = get_peft_model(copy.deepcopy(models[1]), adapter).eval()
    scores = OracleScorer(
        oracle=ScoringModel(shared, contextlib.nullcontext),
        base=ScoringModel(shared, shared.disable_adapter),
        batch_tokens=64,
    ).score(sequences)

    base = copy.deepcopy(models[1]).double()
    oracle = copy.deepcopy(shared).merge_and_unload().double()
    expected = [slow_log_probs(oracle, sequence) - slow_log_probs(base, sequence) for sequence in sequences]
    assert max(scores.abs().max() for scores in expected if len(scores)) > 0.1
    assert_scores(scores, expected)


def test_no_sequences(models):
    assert scorer(*models).score([]) == []


@pytest.mark.parametrize("start", [-1, 0, 4])
def test_a_response_that_starts_outside_the_row_raises(start):
    with pytest.raises(SepoError, match=f"response_start is {start} in a row of 3 tokens, expected 1 to 3"):
        ScoredSequence([1, 2, 3], start)


@given(st.lists(st.integers(1, 200), max_size=60), st.integers(1, 1000))
def test_length_batches(lengths, budget):
    batches = list(length_batches(lengths, budget))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget
    for batch, following in itertools.pairwise(batches):
        longest, next_longest = lengths[batch[0]], lengths[following[0]]
        assert longest >= next_longest  # similar lengths together
        assert longest * (len(batch) + 1) > budget  # no batch is smaller than necessary
