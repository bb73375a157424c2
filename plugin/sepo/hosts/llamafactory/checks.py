"""What can be found wrong with a recipe before any weights are loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamafactory.data.parser import get_dataset_list
from llamafactory.extras.misc import use_modelscope, use_openmind

from sepo.errors import SepoError
from sepo.hosts.llamafactory.keys import names_of
from sepo.training.settings import ModelSpec, RunSettings


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


def _check_path(name: str | None, *, key: str, marker: str) -> None:
    """Refuse a path that is written as one and is not there; hub names are left to the loader."""
    if not name:
        return
    written_as_path = name.startswith((".", "/", "~")) or name.count("/") != 1
    if Path(name).expanduser().is_dir() or written_as_path or _offline():
        if use_modelscope() or use_openmind():
            return
        local_folder(name, key=key, marker=marker)


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def check_policy(given: Mapping[str, Any]) -> None:
    """Refuse a policy whose folders are missing, before anything is loaded.

    Args:
        given: the recipe's keys and values.

    Raises:
        SepoError: naming the key and the path.
    """
    _check_path(given.get("model_name_or_path"), key="model_name_or_path", marker="config.json")
    for adapter in names_of(given.get("adapter_name_or_path")):
        _check_path(adapter, key="adapter_name_or_path", marker="adapter_config.json")


def check_models(given: Mapping[str, Any], settings: RunSettings, *, download: bool = True) -> None:
    """Refuse missing model and adapter folders, before anything is loaded.

    Args:
        given: the recipe's keys and values.
        settings: the resolved settings.
        download: ask the hub for scoring models that are no folders here; without it, hub names are believed.

    Raises:
        SepoError: naming the key and the path.
    """
    check_policy(given)
    check = spec_folders if download else _check_paths
    for source in (settings.token_rewards, settings.precomputed_reference):
        if source is not None and source.model is not None and source.key != "model_name_or_path":
            check(source.model, key=source.key)
    if settings.oracle is None:
        return
    for side, spec in (("oracle_model", settings.oracle.oracle), ("oracle_base_model", settings.oracle.base)):
        check(spec, key=side)


def _check_paths(spec: ModelSpec, *, key: str) -> None:
    """What ``spec_folders`` refuses, without asking the hub for what is written as one of its names."""
    _check_path(spec.model, key=key, marker="config.json")
    for name in spec.adapters:
        _check_path(name, key=_adapters_key(key), marker="adapter_config.json")


def _adapters_key(key: str) -> str:
    return "adapter_name_or_path" if key == "model_name_or_path" else f"{key}_adapters"


def spec_folders(spec: ModelSpec, *, key: str) -> tuple[Path, tuple[Path, ...]]:
    """The folders of a scoring model and of its adapters.

    Raises:
        SepoError: one of them is missing.
    """
    model = local_folder(spec.model, key=key, marker="config.json")
    adapters = tuple(local_folder(name, key=_adapters_key(key), marker="adapter_config.json") for name in spec.adapters)
    return model, adapters


def check_datasets(given: Mapping[str, Any]) -> None:
    """Refuse data sets that are not declared, not there, or hold no pairs.

    Args:
        given: the recipe's keys and values.

    Raises:
        SepoError: naming the data set and the declaration that is expected.
    """
    tokenized = given.get("tokenized_path")
    if tokenized and Path(str(tokenized)).is_dir():
        return
    folder = given.get("dataset_dir") or "data"
    names = [*names_of(given.get("dataset")), *names_of(given.get("eval_dataset"))]
    try:
        attributes = get_dataset_list(names, folder)
    except ValueError as error:
        raise SepoError(f"{error} (dataset_dir is '{folder}', from {os.getcwd()})") from error
    for name, attribute in zip(names, attributes, strict=True):
        if not attribute.ranking and folder != "ONLINE":
            raise SepoError(
                f"dataset '{name}' has no pairs: our stages need a ranking data set. If its rows have a chosen and a "
                f'rejected answer, add "ranking": true and the columns chosen and rejected to its entry in '
                f"{folder}/dataset_info.json."
            )
        path = Path(str(folder), attribute.dataset_name)
        if attribute.load_from == "file" and not path.exists():
            raise SepoError(f"dataset '{name}': {path} does not exist (dataset_info.json names it).")


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
