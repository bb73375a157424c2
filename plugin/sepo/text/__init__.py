"""Texts of tokens, chat encoding, prompts, and projection of scores between tokenizers."""
