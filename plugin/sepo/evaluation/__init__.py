"""Evaluation of a trained policy on held-out pairs and prompts, without importing a host."""
