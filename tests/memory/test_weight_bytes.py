"""Weights counted from a configuration equal those of the real model."""

import bitsandbytes
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from sepo.memory.shapes import (
    NF4_BYTES,
    NF4_DOUBLE_BYTES,
    Adapters,
    Trained,
    model_with,
    shaped_model,
    weight_bytes,
)
from tests.support.models import MODELS, SMALL, model_of


def config_of(name):
    return model_of(name).config


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_equal_the_real_models(name, dtype):
    real = model_of(name, dtype=dtype)
    counted = weight_bytes(shaped_model(real.config, dtype).requires_grad_(False))
    assert counted.parameters == sum(weight.numel() for weight in real.parameters())
    assert counted.total == sum(weight.nbytes for weight in real.parameters())
    assert counted.trainable == counted.trained == 0


@pytest.mark.parametrize("name", ["Llama", "Phi", "Gemma2", "GPTNeoX"])
@pytest.mark.parametrize("targets", [("all",), ("q_proj", "k_proj")])
def test_adapters_equal_pefts(name, targets):
    if name == "GPTNeoX" and targets != ("all",):
        targets = ("query_key_value",)
    wanted = "all-linear" if targets == ("all",) else list(targets)
    real = get_peft_model(model_of(name), LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=wanted))
    config = config_of(name)
    counted = weight_bytes(model_with(config, torch.bfloat16, Trained(Adapters(3, targets))))
    trainable = sum(weight.numel() for weight in real.parameters() if weight.requires_grad)
    assert counted.trainable == trainable
    assert counted.trained == 4 * trainable  # float32 for any dtype of the frozen weights


@pytest.mark.parametrize(("in_float32", "width"), [(True, 4), (False, 2)])
def test_weights_train_in_float32_or_in_the_loaded_dtype(in_float32, width):
    config = config_of("Llama")
    every = weight_bytes(model_with(config, torch.bfloat16, Trained(everything=True, in_float32=in_float32)))
    assert every.trained == width * every.trainable == width * every.parameters
    lora = weight_bytes(model_with(config, torch.bfloat16, Trained(Adapters(2), in_float32=in_float32)))
    assert lora.trained == width * lora.trainable > 0
    assert lora.frozen == 2 * every.parameters


def test_tied_heads_count_once_and_whole_modules_twice():
    config = transformers.LlamaConfig(**{**SMALL, "tie_word_embeddings": True})
    counted = weight_bytes(shaped_model(config, torch.float32))
    also = weight_bytes(model_with(config, torch.float32, Trained(Adapters(2, also=("lm_head",)))))
    plain = weight_bytes(model_with(config, torch.float32, Trained(Adapters(2))))
    table = SMALL["vocab_size"] * SMALL["hidden_size"]
    assert counted.parameters == sum(weight.numel() for weight in transformers.LlamaForCausalLM(config).parameters())
    assert also.trainable == plain.trainable + table


@pytest.mark.parametrize(("double", "per_weight"), [(True, NF4_DOUBLE_BYTES), (False, NF4_BYTES)])
def test_four_bit_sizes_equal_those_of_bitsandbytes(double, per_weight):
    weights = torch.randn(512, 1024)
    packed, state = bitsandbytes.functional.quantize_4bit(weights, quant_type="nf4", compress_statistics=double)
    held = packed.nbytes + state.absmax.nbytes
    if double:
        held += state.state2.absmax.nbytes
    assert held / weights.numel() == pytest.approx(per_weight, rel=1e-6)


def test_quantization_packs_linear_layers_except_the_head():
    config = config_of("Llama")
    plain = weight_bytes(shaped_model(config, torch.bfloat16).requires_grad_(False))
    packed = weight_bytes(shaped_model(config, torch.bfloat16).requires_grad_(False), quantization_bit=8)
    adapted = weight_bytes(model_with(config, torch.bfloat16, Trained(Adapters(2))), quantization_bit=8)
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48  # q and o, k and v, the MLP
    assert plain.total - packed.total == 3 * layer
    assert packed.largest_product == 32 * 48 * 2
    assert adapted.frozen == packed.frozen
