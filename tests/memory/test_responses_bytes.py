"""Memory of a pass over sampled responses counted without data equals that of the real pass."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from sepo.forward.evaluation_mode import in_evaluation_mode
from sepo.forward.sampled import sampled_tokens
from sepo.memory.generation import SampledBatch, generation_bytes
from sepo.memory.live import LiveBytes, tensors_of
from sepo.memory.responses import Responses, responses_bytes, responses_of
from sepo.memory.shapes import Adapters, Trained
from sepo.memory.step import Pass
from tests.support.models import model_of

ROWS, PROMPT, NEW = 6, 30, 40
LORA = Pass(torch.float32, trained=Trained(Adapters(4)))


def batch():
    """Return ids and attention mask of rows padded on both sides, and the positions of the responses' tokens."""
    ids = torch.ones(ROWS, PROMPT + NEW, dtype=torch.long)
    attention, responses = torch.ones_like(ids), torch.ones(ROWS, NEW, dtype=torch.bool)
    attention[1:, :3], attention[0, -5:], responses[0, -5:] = 0, 0, False
    wanted = torch.cat([torch.zeros(ROWS, PROMPT - 1, dtype=torch.bool), responses], dim=1)
    return {"input_ids": ids, "attention_mask": attention}, wanted


def real_bytes(model, *, backward, share=1.0, entropies=False, temperature=0.7, autocast=None, chunk_tokens=None):
    """Return the peak of a real pass as stage `rto` makes it."""
    inputs, wanted = batch()
    if share < 1:
        wanted[:, PROMPT - 1 + round(share * NEW) :] = False
    context = torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None)

    def run():
        with context:
            found = sampled_tokens(
                model, inputs, labels=inputs["input_ids"], wanted=wanted, temperature=temperature,
                with_entropies=entropies, chunk_tokens=chunk_tokens,
            )  # fmt: skip
        if backward:
            found.logps.sum().backward()

    if not backward:
        live = LiveBytes()
        live.leave_out(tensors_of(model))
        with live, torch.no_grad(), in_evaluation_mode(model):
            run()
        return live.peak
    run()  # gradients exist from here on
    live = LiveBytes()
    live.leave_out([*tensors_of(model), *(weight.grad for weight in model.parameters() if weight.grad is not None)])
    with live:
        run()
    return live.peak


def adapted(name, *, checkpointing=False):
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    model = get_peft_model(model_of(name), lora).train()
    if checkpointing:
        model.base_model.model.gradient_checkpointing_enable({"use_reentrant": True})
    return model


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Gemma2", "Qwen3Moe"])
def test_a_training_pass_without_data_needs_as_much_as_the_real_one(name, checkpointing):
    planned = responses_bytes(
        model_of(name).config, Responses(ROWS, PROMPT, NEW, ROWS * NEW - 5), replace(LORA, checkpointing=checkpointing),
        temperature=0.7,
    )  # fmt: skip
    assert planned == pytest.approx(real_bytes(adapted(name, checkpointing=checkpointing), backward=True), rel=0.1)


def test_a_training_pass_of_all_weights_in_mixed_precision():
    model = model_of("Llama").train()
    how = Pass(torch.float32, autocast=torch.bfloat16, trained=Trained(everything=True), checkpointing=False)
    planned = responses_bytes(model.config, responses_of(ROWS, prompt=PROMPT, new_tokens=NEW), how)
    assert planned == pytest.approx(real_bytes(model, backward=True, autocast=torch.bfloat16), rel=0.1)


@pytest.mark.parametrize(("entropies", "chunk_tokens"), [(False, None), (True, None), (True, 16)])
def test_a_scoring_pass_without_data_needs_as_much_as_the_real_one(entropies, chunk_tokens):
    how = replace(LORA, backward=False, head_chunk_tokens=chunk_tokens)
    planned = responses_bytes(
        model_of("Llama").config, responses_of(ROWS, prompt=PROMPT, new_tokens=NEW), how,
        temperature=0.7, reads="entropies" if entropies else "logps",
    )  # fmt: skip
    real = real_bytes(adapted("Llama"), backward=False, entropies=entropies, chunk_tokens=chunk_tokens)
    assert planned == pytest.approx(real, rel=0.1)


def test_the_logits_of_all_tokens_exist_twice():
    config = model_of("Llama").config
    config.vocab_size = 5000
    how = replace(LORA, backward=False)
    responses = responses_of(ROWS, prompt=PROMPT, new_tokens=NEW)
    whole = responses_bytes(config, responses, how, reads="logits")
    logits = ROWS * (NEW + 1) * 5000 * 4
    assert 2 * logits < whole < 2.5 * logits


def test_fewer_selected_tokens_need_less():
    config = model_of("Llama").config
    all_, some = (
        responses_bytes(config, responses_of(ROWS, prompt=PROMPT, new_tokens=NEW, share=share), LORA, temperature=0.7)
        for share in (1.0, 0.2)
    )
    assert some < all_
    model = adapted("Llama", checkpointing=True)
    assert some == pytest.approx(real_bytes(model, backward=True, share=0.2), rel=0.1)


def test_tokens_of_a_batch():
    responses = responses_of(3, prompt=10, new_tokens=20, share=0.3)
    assert (responses.tokens, responses.selected) == (90, 18)


@pytest.mark.parametrize(("rows", "prompt", "new"), [(8, 64, 8), (12, 4, 60)])
@pytest.mark.parametrize("whole", [False, True])
def test_sampling_from_a_policy_in_training(rows, prompt, new, whole):
    """As TRL samples: with the adapters, or with autocast in the model's own forward pass."""
    model = model_of("Llama").train() if whole else adapted("Llama")
    autocast = torch.bfloat16 if whole else None
    planned = generation_bytes(
        model_of("Llama").config, SampledBatch(rows, prompt, new), torch.float32,
        trained=Trained(everything=True) if whole else Trained(Adapters(4)), autocast=autocast,
    )  # fmt: skip
    if whole:
        model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    ids = torch.ones(rows, prompt, dtype=torch.long)
    live = LiveBytes()
    live.leave_out(tensors_of(model))
    with live, torch.no_grad():
        model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), disable_compile=True, max_new_tokens=new,
            min_new_tokens=new, do_sample=True, temperature=0.8, top_k=None, pad_token_id=0, eos_token_id=2,
        )  # fmt: skip
    assert planned.cache + planned.activations == pytest.approx(live.peak, rel=0.1)
