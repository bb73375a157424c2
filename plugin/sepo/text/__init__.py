"""What tokens say: their texts, chat encoding, prompts, and projection between tokenizers."""
