"""Tiny real models and tokenizers on disk, created by the tests without downloads."""

import json
import math
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaRMSNorm

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = [
    "What colour is the sky on a clear day? The sky is blue, and the grass is green.",
    "How many legs has a spider? A spider has 8 legs; an insect has 6 of them.",
    "user assistant system You are a helpful assistant. Name the capital of France. It is Paris.",
]


def tokenizer(extra_text=(), vocab_size=400):
    """Train a byte-level BPE tokenizer with a ChatML template."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([*TEXT, *extra_text], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    made.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return made


def config(vocabulary, **overrides):
    values = {
        "vocab_size": vocabulary,
        "hidden_size": 64,  # a block of 4-bit weights: for CPUs, bitsandbytes cannot pack shorter rows
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**{**values, **overrides})


def save_model(folder: Path, *, seed: int, words=None, noise_over: Path | None = None) -> Path:
    """Save a two-layer Llama with its tokenizer; with ``noise_over``, a perturbed copy of another model (an oracle)."""
    made = words or tokenizer()
    torch.manual_seed(seed)
    if noise_over is None:
        model = LlamaForCausalLM(config(len(made)))
    else:
        model = LlamaForCausalLM.from_pretrained(noise_over)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.03 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    save_tokenizer(made, folder)
    return folder


def save_ending(folder: Path, *, over: Path, share: float = 0.2) -> Path:
    """Save a copy of a model that ends its response at each token with about a probability, at temperature 1."""
    model = LlamaForCausalLM.from_pretrained(over)
    with torch.no_grad():
        # After the last norm, the first feature has nearly all of the length; only the end of turn reads it.
        model.model.embed_tokens.weight[:, 0] = 30.0
        model.lm_head.weight[:, 0] = 0.0
        logit = math.log(share / (1 - share) * model.config.vocab_size)
        model.lm_head.weight[model.config.eos_token_id, 0] = logit / math.sqrt(model.config.hidden_size)
    model.save_pretrained(folder)
    save_tokenizer(PreTrainedTokenizerFast.from_pretrained(over), folder)
    return folder


def save_tokenizer(made, folder: Path) -> None:
    """Save a tokenizer so that transformers 4 loads it, too: its class has a name there that 5 also reads."""
    made.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2))


def pairs(count: int) -> list[dict]:
    rows = []
    for index in range(count):
        question = f"How many legs has creature number {index}?"
        rows.append(
            {
                "conversations": [{"from": "human", "value": question}],
                "chosen": {"from": "gpt", "value": f"It has {index % 9} legs" + " and a tail" * (index % 4) + "."},
                "rejected": {"from": "gpt", "value": f"It has {index % 5} wings" + " or none" * (index % 3) + "."},
            }
        )
    return rows


def kept_conversations(count: int) -> list[str]:
    """Return the exact texts of ``pairs`` for an oracle with another tokenizer: a store is found by them."""
    kept = (
        '{"messages": [{"role": "user", "content": "Q"}], "answers": ["CHOSEN", "REJECTED"], "system": "", "tools": ""}'
    )
    return [
        kept.replace("Q", row["conversations"][0]["value"], 1)
        .replace("CHOSEN", row["chosen"]["value"])
        .replace("REJECTED", row["rejected"]["value"])
        for row in pairs(count)
    ]


def save_pairs(folder: Path, count: int = 24) -> Path:
    """Save a ranking data set `tiny_pairs` and a plain one `tiny_plain`, with their dataset_info.json."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = pairs(count)
    plain = [{"conversations": [*row["conversations"], row["chosen"]]} for row in rows]
    (folder / "tiny_pairs.json").write_text(json.dumps(rows))
    (folder / "tiny_plain.json").write_text(json.dumps(plain))
    ranked = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    info = {
        "tiny_pairs": {
            "file_name": "tiny_pairs.json", "formatting": "sharegpt", "ranking": True, "columns": ranked,
        },
        "tiny_plain": {
            "file_name": "tiny_plain.json", "formatting": "sharegpt", "columns": {"messages": "conversations"},
        },
    }  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def exact_norm(self: LlamaRMSNorm, states: torch.Tensor) -> torch.Tensor:
    """Compute the norm in float64 for a float64 model; the model's own forward always computes in float32."""
    wide = states.to(torch.promote_types(states.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    return self.weight * normed.to(states.dtype)
