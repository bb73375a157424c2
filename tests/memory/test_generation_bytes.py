"""Memory of sampling counted without data is that of sampling."""

import contextlib

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sepo.evaluation.generation import Decoding, generate_answers
from sepo.forward.sequences import ScoringModel
from sepo.memory.generation import SampledBatch, generation_bytes, largest_batches
from sepo.memory.live import LiveBytes, tensors_of


def config(layers=2):
    return LlamaConfig(
        vocab_size=1000, hidden_size=64, intermediate_size=256, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip


def real_bytes(rows, prompt, new, top_p=1.0):
    torch.manual_seed(0)
    model = LlamaForCausalLM(config()).eval()
    live = LiveBytes()
    live.leave_out(tensors_of(model))
    with live:
        generate_answers(
            ScoringModel(model, contextlib.nullcontext), [[5] * prompt] * rows, stop_ids=[999], pad_id=0,
            decoding=Decoding(max_new_tokens=new, temperature=0.8, seed=1, top_p=top_p), batch_tokens=10**6,
        )  # fmt: skip
    return live.peak


@pytest.mark.parametrize(
    ("rows", "prompt", "new", "top_p"), [(8, 64, 8, 1.0), (4, 200, 8, 1.0), (12, 4, 60, 1.0), (12, 4, 60, 0.9)]
)
def test_sampling_without_data_needs_what_sampling_does(rows, prompt, new, top_p):
    planned = generation_bytes(config(), SampledBatch(rows, prompt, new, nucleus=top_p < 1), torch.float32)
    assert planned.cache + planned.activations == pytest.approx(real_bytes(rows, prompt, new, top_p), rel=0.06)


def test_the_cache_has_two_vectors_for_each_layer_head_and_token():
    planned = generation_bytes(config(layers=9), SampledBatch(rows=3, prompt=20, new_tokens=12), torch.float32)
    assert planned.cache == pytest.approx(9 * 2 * 2 * 16 * 3 * 31 * 4, rel=0.02)  # the last token is not in it
    half = generation_bytes(config(layers=9), SampledBatch(rows=3, prompt=20, new_tokens=12), torch.bfloat16)
    assert half.cache == pytest.approx(planned.cache / 2, rel=0.02)


def test_batches_keep_to_the_budget():
    for budget in (64, 1000):
        for batch in largest_batches(budget, prompt=40, new_tokens=16):
            assert batch.rows * (batch.prompt + batch.new_tokens) <= budget
            assert (batch.rows + 1) * (batch.prompt + batch.new_tokens) > budget
    assert largest_batches(10, prompt=40, new_tokens=16)[0].rows == 1
