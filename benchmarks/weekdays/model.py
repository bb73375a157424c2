"""An untrained model directory as users have it: a Llama of two layers, and a tokenizer of one token per word."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .world import DAYS, FORTNIGHT, NUMBERS, SHORT

PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML, as the template `chatml` of LLaMA-Factory."""


def tokenizer() -> PreTrainedTokenizerFast:
    words = [PAD, UNKNOWN, START, END, "user", "assistant", *DAYS, *SHORT, *NUMBERS, FORTNIGHT, "plus", "days"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=END, unk_token=UNKNOWN,
        additional_special_tokens=[START], chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def write_untrained(folder: Path, *, seed: int) -> None:
    """Write the model with random weights, and its tokenizer."""
    words = tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, bos_token_id=None,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
