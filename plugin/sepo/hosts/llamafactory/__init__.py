"""LLaMA-Factory: arguments, stage registration, workflow, launcher. Importing this package imports no host."""
