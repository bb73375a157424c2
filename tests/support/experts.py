"""Tiny mixtures of experts on disk."""

from pathlib import Path

import transformers

from tests.support import tiny

KINDS = {
    "Qwen3Moe": {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
    "Mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2},
}


def save_experts(folder: Path, kind: str = "Qwen3Moe", *, seed: int = 4, words=None) -> Path:
    """Save a two-layer mixture of experts with its tokenizer; the other sizes are those of the tiny models."""
    made = words or tiny.tokenizer()
    shape = tiny.config(len(made)).to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
             "initializer_range", "tie_word_embeddings")  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**{name: shape[name] for name in names}, **KINDS[kind])
    transformers.set_seed(seed)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny.save_tokenizer(made, folder)
    return folder
