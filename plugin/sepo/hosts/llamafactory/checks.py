"""Checks of a recipe that need no model weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llamafactory.data.converter import DATASET_CONVERTERS
from llamafactory.data.parser import DatasetAttr, get_dataset_list

from sepo.errors import SepoError
from sepo.hosts.llamafactory.data_files import first_rows
from sepo.hosts.llamafactory.hub import access_in, policy_in
from sepo.hosts.llamafactory.messages import MESSAGES
from sepo.hosts.llamafactory.rows import check_entry, columns_of
from sepo.recipe.keys import as_flag, names_of
from sepo.recipe.reference import OWN_START, reference_spec
from sepo.recipe.resolve import is_set
from sepo.recipe.rto import RtoSettings
from sepo.recipe.settings import RunSettings
from sepo.rewards import check_rewards
from sepo.scoring.hub_files import ADAPTER, MODEL, Need
from sepo.scoring.model_files import (
    adapters_key,
    check_experts,
    check_local_names,
    model_files,
    scoring_models,
    spec_files,
)
from sepo.scoring.oracle_members import oracle_members


def check_policy(given: Mapping[str, Any], *, need: Need = "weights") -> None:
    """Raise if the policy or one of its adapters is missing, before anything is loaded.

    Args:
        given: the recipe's keys and values.
        need: what is loaded; of hub names, only that is fetched.

    Raises:
        SepoError: naming the key, the name and the revision.
    """
    if given.get(OWN_START) is not None:
        spec_files(policy_in(given), key=OWN_START, access=access_in(given), need=need)


def check_models(
    given: Mapping[str, Any],
    settings: RunSettings,
    *,
    download: bool = True,
    score_only: bool = False,
    made_earlier: Callable[[str], bool] = lambda name: False,
) -> None:
    """Raise if a model or an adapter is missing, before anything is loaded.

    Args:
        given: the recipe's keys and values.
        settings: the resolved settings.
        download: fetch the models of hub names; if False, names that only the hub can verify are not verified.
        score_only: whether the run stops after scoring, and loads no weights of the policy or of ``ref_model``.
        made_earlier: without ``download``, whether a name is the output of an earlier run, which need not exist yet.

    Raises:
        SepoError: naming the key, the name and the revision.
    """
    access = access_in(given)
    scoring = scoring_models(settings)
    if not download:
        for key, spec in [(OWN_START, policy_in(given)), *scoring]:
            check_local_names(spec, key=key, access=access, made_earlier=made_earlier)
        oracle_members(settings.oracles, made_earlier=made_earlier)
        return
    from_scratch = as_flag("train_from_scratch", given.get("train_from_scratch") or False)
    check_policy(given, need="tokenizer" if score_only or from_scratch else "weights")
    if settings.router_loss_weight:
        check_experts(policy_in(given), key=OWN_START, access=access)
    if settings.ref_model is not None and not score_only:
        scoring.append(("ref_model", settings.ref_model))
    for key, spec in scoring:
        spec_files(spec, key=key, access=access)
    oracle_members(settings.oracles)


def check_rto_models(
    given: Mapping[str, Any], settings: RtoSettings, *, download: bool, made_earlier: Callable[[str], bool]
) -> None:
    """Raise if a model of stage `rto` is missing, before anything is loaded; see ``check_models``."""
    access = access_in(given)
    if not download:
        for key, spec in [(OWN_START, policy_in(given)), *settings.models]:
            check_local_names(spec, key=key, access=access, made_earlier=made_earlier)
        return
    from_scratch = as_flag("train_from_scratch", given.get("train_from_scratch") or False)
    check_policy(given, need="tokenizer" if from_scratch else "weights")
    for key, spec in settings.models:
        spec_files(spec, key=key, access=access)
    check_rewards(settings.rewards, access=access)


def check_names(given: Mapping[str, Any], settings: RunSettings | None, *, made_earlier: Callable[[str], bool]) -> None:
    """Raise if a model or adapter that a recipe names is missing, without fetching weights.

    Args:
        given: the recipe's keys and values.
        settings: the resolved settings, or None if the stage is the host's.
        made_earlier: returns whether a name is the output of an earlier run, which need not exist yet.

    Raises:
        SepoError: naming the key, the name and the revision.
    """
    named = [(OWN_START, policy_in(given))]
    if given.get("ref_model"):
        named.append(reference_spec(given))
    if settings is not None:
        named += scoring_models(settings)
    where: dict[str, Any] = {"access": access_in(given), "need": "config"}
    for key, spec in named:
        if not made_earlier(spec.model):
            model_files(spec.model, key=key, marker=MODEL, revision=spec.revision, **where)
        for name, revision in zip(spec.adapters, spec.revisions_of_adapters, strict=True):
            if not made_earlier(name):
                model_files(name, key=adapters_key(key), marker=ADAPTER, revision=revision, **where)
    if settings is not None:
        oracle_members(settings.oracles, made_earlier=made_earlier)


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
        _check_file(name, attributes, folder)


def datasets_are_ranked(given: Mapping[str, Any]) -> bool:
    """Return whether the recipe's ``dataset`` names ranking data sets, after checks of their files.

    Args:
        given: the recipe's keys and values.

    Raises:
        SepoError: a data set is not declared or cannot be read, or some are ranked and some are not.
    """
    folder = given.get("dataset_dir") or "data"
    ranked = {}
    for name in names_of(given.get("dataset")):
        attributes = _entry(name, folder)
        ranked[name] = attributes.ranking
        _check_file(name, attributes, folder)
    if len(set(ranked.values())) > 1:
        pairs, plain = (next(name for name in ranked if ranked[name] is kind) for kind in (True, False))
        raise SepoError(
            f"dataset '{pairs}' is a ranking data set and '{plain}' is not, and the host reads one kind at a time; "
            "name data sets of one kind."
        )
    return all(ranked.values())


def check_prompt_datasets(given: Mapping[str, Any]) -> None:
    """Raise if a data set of prompts is not declared, does not exist, or its rows cannot be read.

    Args:
        given: the recipe's keys and values; ``dataset`` and ``eval_dataset`` name ranking data sets or data sets of
            conversations.

    Raises:
        SepoError: naming the data set.
    """
    if is_set(given.get("do_train")) and not names_of(given.get("dataset")):
        raise SepoError("dataset is missing; set it to the data sets that have the prompts.")
    datasets_are_ranked(given)
    datasets_are_ranked({**given, "dataset": given.get("eval_dataset")})


def _check_file(name: str, attributes: DatasetAttr, folder: Any) -> None:
    """Raise if the local file of a data set does not exist, or its first rows do not fit its entry."""
    if attributes.load_from != "file":
        return
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
