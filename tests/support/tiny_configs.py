"""Tiny configs of any model type of transformers: the defaults of its class with every size made small.

Sizes are recognized by their names. ``EXCEPTIONS`` has the settings of configs that need more: sizes that depend on one
another, or that no name gives away.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PretrainedConfig

VOCABULARY = 97
LAYERS = 2
HEADS = 4
WINDOW = 6
"""Sliding windows, shorter than the rows of the tests."""

# The first pattern that matches the whole name of a setting decides. Only settings whose default is a number change.
_SIZES: tuple[tuple[str, float], ...] = (
    (r".*vocab_size.*|.*group_vocab", VOCABULARY),
    (r"pad_token_id", 0),
    (r"(bos|decoder_start)_token_id", 1),
    (r"(eos|sep)_token_id", 2),
    (r".*token_(id|index)", 2),
    (r".*drop.*|.*_noise|.*jitter.*", 0.0),
    (r"initializer_range|init_std|initializer_factor", 0.2),
    (r".*multiplier|logits?_scal(e|ing)", 1.5),  # often 1, where a mistake could hide
    (r".*soft_?cap(ping)?", 3.0),  # near the logits
    (r"num_kv_shared_layers", 0),
    (r"(num_(hidden_)?|n_|encoder_|decoder_|num_(encoder|decoder)_)layers?|num_blocks|depth", LAYERS),
    (r"num_dense_layers|first_k_dense_replace", 1),
    (r"(num_(attention_)?|n_|encoder_attention_|decoder_attention_|num_(encoder|decoder)_attention_)heads?", HEADS),
    (r"(global_)?head_dim|attention_head_size|qk_(nope_|rope_)?head_dim|v_head_dim|d_kv", 8),
    (r"linear_num_(key|value)_heads", 2),
    (r"linear_(key|value)_head_dim", 8),
    (r"(q|kv)_lora_rank|adapter_rank|laurel_rank|index_head_dim", 8),
    (r".*(hidden|embedding)_(size|dim)(_global|_per_layer_input)?|n_embd|d_model|dim|word_embed_proj_dim|emb_dim", 32),
    (r".*(intermediate|ffn|inner|mlp|feed_?forward).*(size|dim)|n_inner|d_inner|d_ff|(encoder|decoder)_ffn_dim", 48),
    (r"(n|num|moe_num)_(routed_|local_)?experts|zero_expert_num", 4),
    (r".*experts?_per_to(k|ken)|moe_topk|top_?k|moe_(top_)?k", 2),
    (r".*shared_experts?", 1),
    (r"n_group|topk_group|.*n_groups|num_expert_groups?", 1),
    (r".*(ssm_state_size|d_state|state_size)", 8),
    (r".*chunk_(size|length)", 4),
    (r"max_position_embeddings|n_positions|max_(seq|sequence|source|target).*|seq_length|n_ctx", 128),
    (r"sliding_window|attention_window.*|local_attention_window|window_size", WINDOW),
    (r"rotary_dim", 4),
)

_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16}  # expand * hidden_size = 64

_SHARED_KEYS = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
}

EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA2, "attn_layer_indices": [1]},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "gemma3n_text": {**_SHARED_KEYS, "altup_num_inputs": 2},
    "gemma3": {"text_config": {"final_logit_softcapping": 3.0}},  # it does not apply it
    "gemma3_text": {"final_logit_softcapping": 3.0},
    "gemma4": {"text_config": {"final_logit_softcapping": 3.0}},
    "gemma4_text": {**_SHARED_KEYS, "final_logit_softcapping": 3.0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {**_MAMBA2, "num_hidden_layers": 2, "layer_types": ["mamba", "attention"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "lfm2": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 2},
    "ministral": {"head_dim": 8, "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "qwen2_moe": {"use_sliding_window": False},  # with it layers share a mask but not the window: padded
    "reformer": {"axial_pos_embds": False, "hash_seed": 0},
    "smollm3": {"no_rope_layers": [1, 0]},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
    "zamba": {"num_hidden_layers": 8, "use_mamba_kernels": False},
}


def tiny_value(name: str, default: Any) -> Any:
    """Return the value of a setting in a tiny config."""
    if name == "is_decoder":
        return True
    if isinstance(default, bool) or not isinstance(default, int | float):
        return default
    for pattern, value in _SIZES:
        if re.fullmatch(pattern, name):
            return type(default)(value)
    return default


def shrunk(config: PretrainedConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a config that differ in a tiny one.

    Args:
        config: the default config of a class.
        changes: settings that are not derived from their names; a mapping for those of an inner config.
    """
    declared = {field.name: field.default for field in dataclasses.fields(config)}
    settings = dict(changes)
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            settings[name] = {**shrunk(value, changes.get(name, {})), "model_type": value.model_type}
        elif name in declared and name not in changes and (tiny := tiny_value(name, declared[name])) != declared[name]:
            settings[name] = tiny
    if isinstance(kv_heads := declared.get("num_key_value_heads"), int) and "num_key_value_heads" not in changes:
        attribute = config.attribute_map.get("num_attention_heads", "num_attention_heads")
        settings["num_key_value_heads"] = HEADS if kv_heads == declared.get(attribute) else HEADS // 2
    count = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    return settings if count in changes else {**settings, **_one_layer_of_each_type(config, count, settings)}


def _one_layer_of_each_type(config: PretrainedConfig, count: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the lists of the types of a config's layers, with each type at least once, and the number of layers."""
    lists = {
        name: list(dict.fromkeys(value))
        for name, value in vars(config).items()
        if name.endswith(("layer_types", "layers_block_type"))
        and isinstance(value, list)
        and len(value) == getattr(config, count, None)
        and name not in settings
        and name in {field.name for field in dataclasses.fields(config)}
    }
    if not lists or count not in settings:
        return {}
    layers = max(LAYERS, *map(len, lists.values()))
    return {count: layers} | {
        name: list(itertools.islice(itertools.cycle(kinds), layers)) for name, kinds in lists.items()
    }


def tiny_config(model_type: str) -> PretrainedConfig:
    """Return the config of a model type with small sizes."""
    config, changes = AutoConfig.for_model(model_type), EXCEPTIONS.get(model_type, {})
    if hasattr(config, "use_sliding_window"):  # off by default; the types of the layers depend on it
        changes = {"use_sliding_window": True, **changes}
        config = AutoConfig.for_model(model_type, use_sliding_window=changes["use_sliding_window"])
    return AutoConfig.for_model(model_type, **shrunk(config, changes))
