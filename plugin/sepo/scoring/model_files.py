"""Scoring models by name: their folders, their tokenizers, how much they can read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sepo.errors import SepoError
from sepo.recipe.settings import ModelSpec


def local_folder(name: str, *, key: str, marker: str) -> Path:
    """Find the folder of a model or adapter, in the file system or in the hub's cache.

    Args:
        name: folder or hub name.
        key: the recipe's key, for the message.
        marker: the file that such a folder holds (``config.json``, ``adapter_config.json``).

    Returns:
        The folder.

    Raises:
        SepoError: there is no such folder, or it is of the other kind.
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
    except Exception as error:  # the hub's client raises many kinds: offline, no such repository, no access
        reason = str(error).strip().splitlines()[0]
        raise SepoError(
            f"{key}: '{name}' is neither a folder here (from {os.getcwd()}) nor a model that the hub gave ({reason})"
        ) from error


def adapters_key(key: str) -> str:
    """The recipe's key of the adapters over the model that another key names."""
    return "adapter_name_or_path" if key == "model_name_or_path" else f"{key}_adapters"


def spec_folders(spec: ModelSpec, *, key: str) -> tuple[Path, tuple[Path, ...]]:
    """The folders of a scoring model and of its adapters.

    Raises:
        SepoError: one of them is missing.
    """
    model = local_folder(spec.model, key=key, marker="config.json")
    adapters = tuple(local_folder(name, key=adapters_key(key), marker="adapter_config.json") for name in spec.adapters)
    return model, adapters


def own_tokenizer(spec: ModelSpec, *, key: str, model_args: Any) -> Any:
    """The tokenizer that a scoring model came with.

    Args:
        spec: the scoring model.
        key: the recipe's key, for the message.
        model_args: the host's model arguments, for access to the hub.

    Raises:
        SepoError: its folder is missing.
    """
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        str(local_folder(spec.model, key=key, marker="config.json")), trust_remote_code=model_args.trust_remote_code
    )


def differing_token(tokenizer: Any, other: Any) -> str | None:
    """The first token of a tokenizer, its padding aside, that is another id of the other one or unknown to it."""
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    differing = [token for token, index in ours.items() if theirs.get(token) != index and token != tokenizer.pad_token]
    return min(differing, key=lambda item: ours[item], default=None)


def check_tokenizers(policy: Any, spec: ModelSpec, *, key: str, model_args: Any, owner: str = "the policy") -> None:
    """Refuse a scoring model whose token ids mean something else than the policy's.

    Args:
        policy: the policy's tokenizer.
        spec: the scoring model.
        key: the recipe's key, for the message.
        model_args: the host's model arguments, for access to the hub.
        owner: whose tokenizer ``policy`` is, for the message.

    Raises:
        SepoError: with an example of a token that differs.
    """
    tokenizer = own_tokenizer(spec, key=key, model_args=model_args)
    token = differing_token(policy, tokenizer)
    if token is not None:
        ours, theirs = policy.get_vocab(), tokenizer.get_vocab()
        raise SepoError(
            f"{key}: '{spec.model}' has another tokenizer than {owner}: {len(theirs):,} tokens, not {len(ours):,}, "
            f"and {token!r} is {theirs.get(token, 'unknown')} there and {ours[token]} here. Scores are per token, so a "
            f"scoring model must share {owner}'s tokenizer, added tokens included; take one of {owner}'s family."
        )


def max_positions(spec: ModelSpec, *, key: str, model_args: Any) -> int | None:
    """How many tokens a scoring model can read, or None where it has no limit.

    Raises:
        SepoError: its folder is missing.
    """
    from transformers import AutoConfig

    folder, _ = spec_folders(spec, key=key)
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=model_args.trust_remote_code)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(positions) if positions else None
