"""Configurations of published models, without their weights."""

import transformers


def llama(hidden, inner, layers, heads, words, kv=None, kind="LlamaConfig", **more):
    return getattr(transformers, kind)(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv or heads, vocab_size=words, tie_word_embeddings=more.pop("tied", False), **more,
    )  # fmt: skip


# Published shapes; a model whose name contains one of these words has that shape.
SHAPES = {
    "llama-2-13b": lambda: llama(5120, 13824, 40, 40, 32000),
    "llama-2-7b": lambda: llama(4096, 11008, 32, 32, 32000),
    "llama-3-8b": lambda: llama(4096, 14336, 32, 32, 128256, kv=8),
    "tinyllama": lambda: llama(2048, 5632, 22, 32, 32000, kv=4),
    "qwen2.5-14b": lambda: llama(5120, 13824, 48, 40, 152064, kv=8, kind="Qwen2Config"),
    "qwen2.5-7b": lambda: llama(3584, 18944, 28, 28, 152064, kv=4, kind="Qwen2Config"),
    "qwen2.5-1.5b": lambda: llama(1536, 8960, 28, 12, 151936, kv=2, kind="Qwen2Config", tied=True),
    "qwen2.5-0.5b": lambda: llama(896, 4864, 24, 14, 151936, kv=2, kind="Qwen2Config", tied=True),
    "qwen1.5-7b": lambda: llama(4096, 11008, 32, 32, 151936, kind="Qwen2Config"),
    "gemma-2-9b": lambda: llama(3584, 14336, 42, 16, 256000, kv=8, kind="Gemma2Config", tied=True, head_dim=256),
    "pythia-6.9b": lambda: transformers.GPTNeoXConfig(
        hidden_size=4096, intermediate_size=16384, num_hidden_layers=32, num_attention_heads=32, vocab_size=50432
    ),
    "pythia-1b": lambda: transformers.GPTNeoXConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=8, vocab_size=50304
    ),
    "qwen3-30b-a3b": lambda: llama(
        2048,
        6144,
        48,
        32,
        151936,
        kv=4,
        kind="Qwen3MoeConfig",
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
    ),
    "qwen3-4b": lambda: llama(2560, 9728, 36, 32, 151936, kv=8, kind="Qwen3Config", tied=True, head_dim=128),
    "qwen3-0.6b": lambda: llama(1024, 3072, 28, 16, 151936, kv=8, kind="Qwen3Config", tied=True, head_dim=128),
}
