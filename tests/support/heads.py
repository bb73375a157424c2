"""Models of every family whose heads and norms are not trivial, and a batch with wanted positions."""

import copy

import torch
import transformers
from peft import LoraConfig, get_peft_model

VOCABULARY = 61
LENGTHS = [11, 7, 9]
NEOX_NAMES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA_NAMES = {**NEOX_NAMES, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 64}
STRONG = {"initializer_range": 0.6}  # logits large enough that a cap or a scale matters
FAMILIES = {
    "Llama": LLAMA_NAMES,
    "Qwen2": LLAMA_NAMES,
    "Qwen3": {**LLAMA_NAMES, "head_dim": 8},
    "Mistral": {**LLAMA_NAMES, "sliding_window": 4},
    "Gemma2": {**LLAMA_NAMES, **STRONG, "head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 30.0},
    "Gemma3Text": {**LLAMA_NAMES, "head_dim": 8, "sliding_window": 4},
    "GPT2": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "Phi": {**LLAMA_NAMES, "num_key_value_heads": 4},
    "GPTNeoX": {**NEOX_NAMES, "intermediate_size": 64, "max_position_embeddings": 64},
    "Cohere": {**LLAMA_NAMES, **STRONG, "logit_scale": 0.25},
    "Granite": {**LLAMA_NAMES, **STRONG, "logits_scaling": 4.0},
}
MODELS = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}


def make(family="Llama", dtype=torch.float64, **overrides):
    config_class = getattr(transformers, f"{family}Config")
    model_class = getattr(transformers, MODELS.get(family, f"{family}ForCausalLM"))
    torch.manual_seed(0)
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = model_class(config_class(**{"initializer_range": 0.3, **FAMILIES[family], **tokens, **overrides}))
    with torch.no_grad():  # biases and norms start at 0 or 1, where a mistake could hide
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def lora(model, **settings):
    torch.manual_seed(1)
    wrapped = get_peft_model(model, LoraConfig(r=4, **{"target_modules": "all-linear", **settings}))
    with torch.no_grad():  # B starts at 0, where A has no gradient
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    return wrapped.eval()


def batch(seed=0):
    """Return three rows padded on the right and random wanted positions outside the padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (len(LENGTHS), max(LENGTHS)), generator=generator)
    real = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(-1)
    wanted = (torch.rand(ids[:, 1:].shape, generator=generator) < 0.4) & real[:, 1:]
    assert wanted.any()
    return {"input_ids": ids.where(real, 0), "attention_mask": real.long()}, ids.where(real, -100), wanted


def gradients(model, logps):
    """Return gradients of a weighted sum, so that positions are not interchangeable."""
    model.zero_grad()
    (logps * torch.linspace(0.5, 2.0, logps.numel()).to(logps).view_as(logps)).sum().backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    assert trained
    return copy.deepcopy(trained)
