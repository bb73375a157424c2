"""Selection of the files of a repository that loading a model or an adapter reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

MODEL, ADAPTER = "config.json", "adapter_config.json"
"""The files that identify the directory of a model and of an adapter."""

VALUE_HEAD = "value_head.safetensors"
"""The head that LLaMA-Factory's stage ``rm`` saves beside a model or an adapter."""

Need = Literal["config", "tokenizer", "weights", "reward"]
"""What is loaded: the configuration; it and the tokenizer with its chat templates; the weights as well; and a value
head if there is one."""

_WEIGHTS = {
    MODEL: ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    ADAPTER: ("adapter_model.safetensors", "adapter_model.bin"),
}
"""Names of weights, the first that a repository has is the one that ``from_pretrained`` loads."""
_INDEX = ".index.json"
_TEXTS = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".spm", ".bpe", ".codes", ".vocab")
_TEMPLATES = "additional_chat_templates"
_TRAINING = ("optimizer", "scheduler", "rng_state", "training_args", "trainer_state", "scaler")


def config_files(files: Collection[str], *, marker: str, remote_code: bool) -> list[str]:
    """Return the configuration and, if the repository's code may run, its modules."""
    return sorted(name for name in files if name == marker or (remote_code and name.endswith(".py")))


def tokenizer_files(files: Collection[str]) -> list[str]:
    """Return configurations, the files of the tokenizer, and chat templates."""
    return sorted(name for name in files if _is_text(name))


def _is_text(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    if folder:
        return folder == _TEMPLATES and file.endswith(".jinja")
    named = file.startswith(("tokenizer", "vocab", "merges"))
    return (file.endswith(_TEXTS) or named) and not file.endswith(_INDEX) and not file.startswith(_TRAINING)


def weight_files(files: Collection[str], *, marker: str, read: Callable[[str], Path]) -> list[str]:
    """Return the files of the weights in the format that ``from_pretrained`` prefers: safetensors, then ``.bin``.

    Args:
        files: names of all files of the repository.
        marker: ``MODEL`` or ``ADAPTER``.
        read: returns the local path of a file; called for the index of sharded weights.

    Returns:
        The names; empty if the repository has no weights.
    """
    first = next((name for name in _WEIGHTS[marker] if name in files), None)
    if first is None:
        root = [name for name in files if "/" not in name and not name.startswith(_TRAINING)]
        formats = ([name for name in root if name.endswith(suffix)] for suffix in (".safetensors", ".bin"))
        return sorted(next(filter(None, formats), []))
    if not first.endswith(_INDEX):
        return [first]
    shards = json.loads(read(first).read_text(encoding="utf-8"))["weight_map"].values()
    return [first, *sorted(set(shards))]


def local_files(folder: Path) -> list[str]:
    """Return the names of all files in a directory, relative to it."""
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
