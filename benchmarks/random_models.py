"""Models with random weights in a cache directory: the speed and memory of a step do not depend on their values."""

import sys

# Four layers as in the published models, for a CPU; the tokenizer and its vocabulary are SmolLM2's. LoRA on all linear
# layers is LoRA on the attention of Qwen3-MoE: its experts are parameters of three dimensions.
SMALL = {
    # Qwen3-30B-A3B has 48 layers of hidden size 2048 with 128 experts of 768, 8 of them per token.
    "qwen3_moe": ("Qwen3MoeConfig", {
        "hidden_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 16, "num_key_value_heads": 4,
        "head_dim": 64, "intermediate_size": 3072, "num_experts": 32, "num_experts_per_tok": 8,
        "moe_intermediate_size": 384, "norm_topk_prob": True, "max_position_embeddings": 4096,
    }),
    # The layers of Qwen3.5-0.8B, which has 24: three of linear attention, then one of full attention.
    "qwen3_5": ("Qwen3_5TextConfig", {
        "hidden_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2,
        "head_dim": 256, "intermediate_size": 3584, "linear_num_key_heads": 16, "linear_num_value_heads": 16,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "max_position_embeddings": 4096,
        "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
    }),
}  # fmt: skip


def random_weights(config, *, device, dtype):
    """Create a causal language model with random weights on the device."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return AutoModelForCausalLM.from_config(config)
    finally:
        torch.set_default_dtype(before)


def saved_once(folder, name, save):
    """Call `save` with a directory if it was not completed before; return the directory."""
    done = folder / "done"
    if done.is_file():
        return folder
    print(f"making random weights of shape {name} in {folder}", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    save(folder)
    done.touch()
    return folder


def small_model(shape, *, cache, tokenizer_of):
    """Return the directory of a small model in float32, with the tokenizer of another model's directory."""
    import torch
    import transformers

    def save(folder):
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_of)
        kind, values = SMALL[shape]
        tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        config = getattr(transformers, kind)(
            **values, **tokens, vocab_size=len(tokenizer), tie_word_embeddings=False, use_cache=True
        )
        random_weights(config, device="cpu", dtype=torch.float32).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return saved_once(cache / f"train_step-{shape}", shape, save)
