"""Preference pairs from responses that a policy samples to prompts, and a judge's rewards of them."""
