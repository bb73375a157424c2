"""Small models of every supported family, and padded batches of pairs with shared prompts."""

import torch
import transformers

from sepo.forward.head import selected_log_probs
from sepo.forward.shared_prompt import PairLayout, PairSpan

VOCABULARY = 97
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WINDOW = 6  # the sequences below are up to three times as long
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 12, "mamba_n_groups": 2, "mamba_expand": 2,
         "mamba_chunk_size": 16, "initializer_range": 0.2}  # fmt: skip
# Narrow weights and wide heads: keys are divided by their norm, which multiplies rounding errors of short ones.
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 12,
         "initializer_range": 0.1, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
         "head_dim": 16}  # fmt: skip
MODELS = {
    "Llama": ("LlamaConfig", {}),
    "Qwen2": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "Qwen3": ("Qwen3Config", {"head_dim": 8}),
    "Mistral": ("MistralConfig", {"sliding_window": WINDOW}),
    "Gemma2": (
        "Gemma2Config",
        {"head_dim": 8, "sliding_window": WINDOW, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    ),
    "Gemma3": (
        "Gemma3TextConfig",
        {
            "head_dim": 8,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "GPT2": ("GPT2Config", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "resid_pdrop": 0.0,
                            "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "Phi": ("PhiConfig", {}),
    "GPTNeoX": ("GPTNeoXConfig", {}),
    "Cohere": ("CohereConfig", {"logit_scale": 0.25}),
    "Granite": ("GraniteConfig", {"logits_scaling": 4.0}),
    "Qwen3Moe": ("Qwen3MoeConfig", {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                                    "head_dim": 8}),
    "Mixtral": ("MixtralConfig", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "Qwen3_5": ("Qwen3_5TextConfig", DELTA),
    # four of six experts: with two, the rounding of bfloat16 moves a token to an expert with a large weight
    "Qwen3Next": ("Qwen3NextConfig", {**DELTA, "num_experts": 6, "num_experts_per_tok": 4, "moe_intermediate_size": 16,
                                      "shared_expert_intermediate_size": 16}),
    "Granite4": ("GraniteMoeHybridConfig", {**MAMBA, "num_local_experts": 0, "shared_intermediate_size": 48,
                                            "layers_block_type": ["mamba", "attention", "mamba"]}),
    "Bamba": ("BambaConfig", {**MAMBA, "attn_layer_indices": [1]}),
}  # fmt: skip
# Supported as well, with blocks that are built otherwise: a Mamba layer inside two blocks, blocks without any mixer.
OTHERS = {
    "Zamba2": ("Zamba2Config", {**MAMBA, "layers_block_type": ["mamba", "hybrid", "mamba"], "n_mamba_heads": 4,
                                "mamba_headdim": 16, "mamba_ngroups": 2, "num_mem_blocks": 1, "chunk_size": 16}),
    "NemotronH": ("NemotronHConfig", {**MAMBA, "layers_block_type": ["mamba", "attention", "moe", "mamba"],
                                      "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 12, "n_groups": 2,
                                      "head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2,
                                      "moe_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16}),
}  # fmt: skip


def model_of(name, *, attention="sdpa", dtype=torch.float32, **changes):
    config_class, more = {**MODELS, **OTHERS}[name]
    config = getattr(transformers, config_class)(**{**SMALL, **more, **changes}, attn_implementation=attention)
    if dtype is torch.float64:
        config._experts_implementation = "eager"  # the default is a kernel for narrower types
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype).train()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("dt_bias"):
            torch.nn.init.constant_(parameter, -2.0)  # states that last for tokens, as in trained models
    return model


def batch_of(lengths, *, seed=0, padding=3):
    """Right-padded pairs of (prompt, chosen, rejected) lengths; half of the responses share a prefix."""
    draw = torch.Generator().manual_seed(seed)
    sides, prompts = [[], []], []
    for number, (prompt, chosen, rejected) in enumerate(lengths):
        text, *responses = (
            torch.randint(3, VOCABULARY, (length,), generator=draw) for length in (prompt, chosen, rejected)
        )
        if number % 2:
            responses[1][:2] = responses[0][:2]
        for side, response in zip(sides, responses, strict=True):
            side.append(torch.cat([text, response]))
        prompts.append(prompt)
    rows = sides[0] + sides[1]
    ids = torch.zeros(len(rows), max(map(len, rows)) + padding, dtype=torch.long)
    mask, wanted = torch.zeros_like(ids), torch.zeros(len(rows), ids.shape[1] - 1, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
        wanted[index, prompts[index % len(prompts)] - 1 : len(row) - 1] = True
    return {"input_ids": ids, "attention_mask": mask}, wanted


PAIRS = [(7, 5, 9), (1, 8, 7), (11, 6, 5)]


def values_and_gradients(model, inputs, wanted, layout=None):
    model.zero_grad()
    logps = selected_log_probs(model, inputs, labels=inputs["input_ids"], wanted=wanted, layout=layout)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1)).to(logps)
    (logps * weights).sum().backward()
    return logps.detach(), {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def layout_of(*pairs):
    """A row of (shared, chosen, rejected) lengths, without token ids."""
    spans, start = [], 0
    for shared, chosen, rejected in pairs:
        spans.append(PairSpan(start, shared, chosen, rejected))
        start = spans[-1].end
    none = torch.zeros(start, dtype=torch.long)
    return PairLayout(tuple(spans), none, none, none)
