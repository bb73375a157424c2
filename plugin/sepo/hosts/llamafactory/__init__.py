"""LLaMA-Factory: arguments, stage registration, workflow and launcher. This module does not import the host."""
