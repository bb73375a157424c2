"""Sums over responses and their KL against full logits in float64, for any batching."""

import copy
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM

from sepo.errors import SepoError
from sepo.evaluation.divergence import answer_sums
from sepo.forward.sequences import ScoredSequence
from tests.support import tiny


@torch.no_grad()
def slow_sums(policy, reference, sequences):
    """Log-probabilities and KL(policy || reference) from two log_softmax over full logits, a row at a time."""
    found = []
    for sequence in sequences:
        ids = torch.tensor([sequence.input_ids])
        log_p, log_q = (model(ids).logits[0].log_softmax(-1) for model in (policy, reference))
        places = range(sequence.response_start - 1, ids.shape[1] - 1)
        pairs = [(place, ids[0, place + 1]) for place in places]
        found.append(
            (
                sum(log_p[place, token].item() for place, token in pairs),
                sum(log_q[place, token].item() for place, token in pairs),
                sum((log_p[place].exp() * (log_p[place] - log_q[place])).sum().item() for place in places),
            )
        )
    return np.array(found)


@pytest.fixture(scope="module")
def expected(exact_models, answers):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.models.llama.modeling_llama.LlamaRMSNorm.forward", tiny.exact_norm)
        return slow_sums(*exact_models, answers)


def columns(sums):
    return np.stack([sums.logps, sums.reference_logps, sums.kl], 1)


@pytest.mark.parametrize("chunk_tokens", [None, 3])
@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 64, 10_000])
def test_sums_and_kl_equal_full_logits(exact_models, answers, expected, scoring, batch_tokens, pairs, chunk_tokens):
    seen = []
    policy, reference = map(scoring, exact_models)
    sums = answer_sums(
        policy, answers, reference=reference, batch_tokens=batch_tokens, pairs=pairs, chunk_tokens=chunk_tokens,
        on_batch=seen.append,
    )  # fmt: skip
    np.testing.assert_allclose(columns(sums), expected, rtol=1e-10, atol=1e-10)
    assert sums.tokens.tolist() == [len(row.input_ids) - row.response_start for row in answers]
    assert sum(seen) == len(answers)
    assert sums.kl.min() > 0.01
    alone = answer_sums(policy, answers, reference=None, batch_tokens=batch_tokens, pairs=pairs)
    np.testing.assert_allclose(alone.logps, expected[:, 0], rtol=1e-10)
    assert (alone.reference_logps, alone.kl) == (None, None)


def test_the_direction_is_from_the_policy(exact_models, answers, expected, scoring):
    """With the models exchanged, the result is the other divergence, a different number."""
    policy, reference = map(scoring, exact_models)
    turned = answer_sums(reference, answers, reference=policy, batch_tokens=1000)
    np.testing.assert_allclose(turned.kl, slow_sums(*reversed(exact_models), answers)[:, 2], rtol=1e-10)
    assert np.abs(turned.kl / expected[:, 2] - 1).max() > 0.01


@given(order=st.permutations(range(18)), batch_tokens=st.integers(1, 300))
@settings(max_examples=12)
def test_neither_order_nor_batches_matter_in_float32(world, exact_models, answers, order, batch_tokens):
    from contextlib import nullcontext

    from sepo.forward.sequences import ScoringModel

    models = [
        ScoringModel(LlamaForCausalLM.from_pretrained(world / name).eval(), nullcontext) for name in ("oracle", "base")
    ]
    straight = answer_sums(models[0], answers, reference=models[1], batch_tokens=10_000)
    moved = answer_sums(models[0], [answers[i] for i in order], reference=models[1], batch_tokens=batch_tokens)
    np.testing.assert_allclose(columns(moved), columns(straight)[list(order)], rtol=2e-6, atol=2e-6)


def test_a_model_has_zero_kl_from_itself(exact_models, answers, scoring):
    model = exact_models[0].float()
    try:
        for reference in (scoring(model), scoring(copy.deepcopy(model))):
            for pairs in (True, False):
                sums = answer_sums(scoring(model), answers, reference=reference, batch_tokens=99, pairs=pairs)
                assert not sums.kl.any()
                assert (sums.logps == sums.reference_logps).all()
    finally:
        model.double()


def test_the_same_state_is_run_once(exact_models, answers, scoring):
    model = copy.deepcopy(exact_models[0])
    policy = scoring(model)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    sums = answer_sums(policy, answers[:1], reference=policy, batch_tokens=99)
    assert len(calls) == 1
    assert sums.kl.tolist() == [0.0]


@pytest.mark.parametrize("target", ["q_proj", "lm_head"])
def test_the_reference_is_the_policy_without_its_adapter(exact_models, answers, scoring, target):
    """Also with an adapter on the head: the reference must not use the policy's adapted head."""
    base = copy.deepcopy(exact_models[1])
    torch.manual_seed(0)
    policy = get_peft_model(copy.deepcopy(base), LoraConfig(r=4, target_modules=[target])).double().eval()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    merged = copy.deepcopy(policy).merge_and_unload()
    for pairs in (True, False):
        sums = answer_sums(
            scoring(policy), answers, reference=scoring(policy, policy.disable_adapter), batch_tokens=80, pairs=pairs
        )
        np.testing.assert_allclose(columns(sums), slow_sums(merged, base, answers), rtol=1e-9, atol=1e-10)


class LargestLogits(TorchDispatchMode):
    """Records the maximum number of rows of any tensor with the width of the vocabulary."""

    def __init__(self, width):
        super().__init__()
        self.width, self.rows = width, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        wide = isinstance(out, torch.Tensor) and out.dim() and out.shape[-1] == self.width
        if wide and out.untyped_storage().data_ptr() not in given:
            self.rows = max(self.rows, out.numel() // self.width)
        return out


def test_no_more_logits_exist_than_a_chunk(exact_models, answers, scoring):
    vocabulary = exact_models[0].config.vocab_size
    policy, reference = map(scoring, exact_models)
    with LargestLogits(vocabulary) as seen:
        answer_sums(policy, answers, reference=reference, batch_tokens=10_000, chunk_tokens=5)
    assert seen.rows == 5


def test_different_vocabularies_are_an_error(exact_models, answers, scoring):
    other = LlamaForCausalLM(tiny.config(exact_models[0].config.vocab_size + 8)).double().eval()
    size = exact_models[0].config.vocab_size
    with pytest.raises(
        SepoError, match=f"policy's head gives {size:,} logits .* the reference's {size + 8:,}.*ref_model"
    ):
        answer_sums(scoring(exact_models[0]), answers, reference=scoring(other), batch_tokens=99)


def test_broken_weights_are_reported(exact_models, answers, scoring):
    broken = copy.deepcopy(exact_models[0])
    broken.lm_head.weight.data[7] = float("nan")
    with pytest.raises(SepoError, match=r"log-probability under the policy of response 0 \(of 18\) is nan"):
        answer_sums(scoring(broken), answers, reference=scoring(exact_models[1]), batch_tokens=999)


def test_parts_keep_their_rows(exact_models, answers, scoring):
    sums = answer_sums(scoring(exact_models[0]), answers, reference=scoring(exact_models[1]), batch_tokens=999)
    part = sums.part(slice(3, 6))
    assert part.tokens.tolist() == sums.tokens[3:6].tolist()
    np.testing.assert_array_equal(columns(part), columns(sums)[3:6])
    assert answer_sums(scoring(exact_models[0]), answers, reference=None, batch_tokens=9).part(slice(2)).kl is None


def test_long_responses_sum_in_float64(exact_models, scoring):
    """A thousand tokens, for which sums in float32 lose the precision that close margins need."""
    draw = random.Random(5)
    row = ScoredSequence([draw.randrange(3, 300) for _ in range(1001)], 1)
    sums = answer_sums(scoring(exact_models[0]), [row], reference=scoring(exact_models[1]), batch_tokens=2000)
    np.testing.assert_allclose(columns(sums), slow_sums(*exact_models, [row]), rtol=1e-10)
