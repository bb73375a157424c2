"""Checks of a recipe that need no model weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamafactory.data.converter import DATASET_CONVERTERS
from llamafactory.data.parser import DatasetAttr, get_dataset_list
from llamafactory.extras.misc import use_modelscope, use_openmind

from sepo.errors import SepoError
from sepo.hosts.llamafactory.data_files import first_rows
from sepo.hosts.llamafactory.messages import MESSAGES
from sepo.hosts.llamafactory.rows import check_entry, columns_of
from sepo.recipe.keys import names_of
from sepo.recipe.model_specs import ModelSpec
from sepo.recipe.settings import RunSettings
from sepo.scoring.model_files import adapters_key, local_folder, spec_folders


def _check_path(name: str | None, *, key: str, marker: str) -> None:
    """Raise if a name that is written as a path does not exist; hub names are left to the loader."""
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
    """Raise if a directory of the policy is missing, before anything is loaded.

    Args:
        given: the recipe's keys and values.

    Raises:
        SepoError: naming the key and the path.
    """
    _check_path(given.get("model_name_or_path"), key="model_name_or_path", marker="config.json")
    for adapter in names_of(given.get("adapter_name_or_path")):
        _check_path(adapter, key="adapter_name_or_path", marker="adapter_config.json")


def check_models(given: Mapping[str, Any], settings: RunSettings, *, download: bool = True) -> None:
    """Raise if a model or adapter directory is missing, before anything is loaded.

    Args:
        given: the recipe's keys and values.
        settings: the resolved settings.
        download: request the configuration of scoring models that are not local directories from the hub; if False,
            hub names are not verified.

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
    """Check like ``spec_folders``, but leave names that are written as hub names unverified."""
    _check_path(spec.model, key=key, marker="config.json")
    for name in spec.adapters:
        _check_path(name, key=adapters_key(key), marker="adapter_config.json")


def check_datasets(given: Mapping[str, Any]) -> None:
    """Raise if a data set is not declared, does not exist, or its rows are no pairs that can be read.

    Rows are checked in local files, of which only the beginning is read; a data set on a hub is checked when it is
    loaded.

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
    if folder == "ONLINE" and names:
        raise SepoError(
            f"dataset_dir is ONLINE, by which LLaMA-Factory reads data sets of the hub as unranked ones; declare "
            f'\'{names[0]}\' in a dataset_info.json: {{"name": {{"hf_hub_url": "{names[0]}", "ranking": true, '
            '"formatting": "messages"}}, and set dataset_dir to its directory.'
        )
    for name in names:
        attributes = _entry(name, folder)
        if not attributes.ranking:
            raise SepoError(
                f"dataset '{name}' has no pairs: sepo's stages require a ranking data set. If its rows have a chosen "
                f'and a rejected response, add "ranking": true and the columns chosen and rejected to its entry in '
                f"{folder}/dataset_info.json."
            )
        if attributes.load_from == "file":
            path = Path(str(folder), attributes.dataset_name)
            if not path.exists():
                raise SepoError(f"dataset '{name}': {path} does not exist (dataset_info.json names it).")
            found = first_rows(path, name=name)
            if found is not None:
                check_entry(attributes, found.rows, present=columns_of(found.rows), complete=found.whole)


def _entry(name: str, folder: Any) -> DatasetAttr:
    """Return the entry of a data set in dataset_info.json.

    Raises:
        SepoError: there is no such entry, or it is not valid.
    """
    where = f"(dataset_dir is '{folder}', from {os.getcwd()})"
    try:
        (attributes,) = get_dataset_list([name], folder)
        if not isinstance(attributes.dataset_name, str):
            raise TypeError(f"{attributes.dataset_name!r} is no name")
    except ValueError as error:
        raise SepoError(f"{error} {where}") from error
    except (TypeError, KeyError, AttributeError) as error:
        raise SepoError(
            f"dataset '{name}': its entry in dataset_info.json is not valid ({type(error).__name__}: {error}); an "
            f'object is expected, with "file_name" or "hf_hub_url", and objects for "columns" and "tags" {where}.'
        ) from error
    converters = [*DATASET_CONVERTERS, MESSAGES]
    if attributes.formatting not in converters:
        known = ", ".join(dict.fromkeys(converters))
        raise SepoError(
            f"dataset '{name}': formatting is {attributes.formatting!r} in dataset_info.json, expected one of {known}."
        )
    return attributes
