"""Scoring models by name: their directories, tokenizers and maximum number of positions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sepo.errors import SepoError
from sepo.recipe.model_specs import ModelSpec


def local_folder(name: str, *, key: str, marker: str) -> Path:
    """Return the directory of a model or adapter, in the file system or in the hub's cache.

    Args:
        name: local directory or hub name.
        key: the recipe's key, for the message.
        marker: the file that identifies such a directory (``config.json``, ``adapter_config.json``).

    Returns:
        The directory.

    Raises:
        SepoError: If there is no such directory, or it holds an adapter in place of a model or vice versa.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / marker).is_file():
            return folder
        other = "adapter_config.json" if marker == "config.json" else "config.json"
        kind = "an adapter" if other == "adapter_config.json" else "a full model"
        found = f"it holds {kind}" if (folder / other).is_file() else f"it has no {marker}"
        hint = ""
        if found.startswith("it holds"):
            hint = " Adapters belong in *_adapters (or adapter_name_or_path), full models in the key without it."
        raise SepoError(f"{key}: '{name}' is not what this key expects: {found}.{hint}")
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.bin", "*.model", "*.txt"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises many types: offline, no such repository, no access
        reason = str(error).strip().splitlines()[0]
        raise SepoError(
            f"{key}: '{name}' is neither a local directory (from {os.getcwd()}) nor a model that the hub provides "
            f"({reason})"
        ) from error


def adapters_key(key: str) -> str:
    """Return the recipe key of the adapters that are applied to the model of another key."""
    return "adapter_name_or_path" if key == "model_name_or_path" else f"{key}_adapters"


def spec_folders(spec: ModelSpec, *, key: str) -> tuple[Path, tuple[Path, ...]]:
    """Return the directories of a scoring model and of its adapters.

    Raises:
        SepoError: If one of them is missing.
    """
    model = local_folder(spec.model, key=key, marker="config.json")
    adapters = tuple(local_folder(name, key=adapters_key(key), marker="adapter_config.json") for name in spec.adapters)
    return model, adapters


def own_tokenizer(spec: ModelSpec, *, key: str, model_args: Any) -> Any:
    """Load the tokenizer that is saved with a scoring model.

    Args:
        spec: the scoring model.
        key: the recipe's key, for the message.
        model_args: the host's model arguments, for access to the hub.

    Raises:
        SepoError: If its directory is missing.
    """
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        str(local_folder(spec.model, key=key, marker="config.json")), trust_remote_code=model_args.trust_remote_code
    )


def differing_token(tokenizer: Any, other: Any) -> str | None:
    """Return the first token, padding aside, that has another id or none in ``other``; None if all match."""
    own, theirs = tokenizer.get_vocab(), other.get_vocab()
    differing = [token for token, index in own.items() if theirs.get(token) != index and token != tokenizer.pad_token]
    return min(differing, key=lambda item: own[item], default=None)


def check_tokenizers(policy: Any, spec: ModelSpec, *, key: str, model_args: Any, owner: str = "the policy") -> None:
    """Raise if the vocabulary of a scoring model differs from the policy's.

    Args:
        policy: the policy's tokenizer.
        spec: the scoring model.
        key: the recipe's key, for the message.
        model_args: the host's model arguments, for access to the hub.
        owner: the owner of the tokenizer ``policy``, for the message.

    Raises:
        SepoError: If the token ids differ; the message gives a token that differs.
    """
    tokenizer = own_tokenizer(spec, key=key, model_args=model_args)
    token = differing_token(policy, tokenizer)
    if token is not None:
        expected, found = policy.get_vocab(), tokenizer.get_vocab()
        differs = f"has the id {found[token]}, expected {expected[token]}" if token in found else "is missing"
        raise SepoError(
            f"{key}: '{spec.model}' has another tokenizer than {owner}: {len(found):,} tokens, expected "
            f"{len(expected):,}, and {token!r} {differs}. Scores are per token, so a scoring model must share "
            f"{owner}'s tokenizer, added tokens included; use one of {owner}'s model family."
        )


def max_positions(spec: ModelSpec, *, key: str, model_args: Any) -> int | None:
    """Return the maximum number of positions of a scoring model, or None if it has no limit.

    Raises:
        SepoError: If its directory is missing.
    """
    from transformers import AutoConfig

    folder, _ = spec_folders(spec, key=key)
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=model_args.trust_remote_code)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(positions) if positions else None
