"""Checks of the steps of `sepo pipeline` before the first one runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from sepo.errors import SepoError
from sepo.hosts.llamafactory.chain_pairs import PAIRS, evaluation_entries, is_own_key
from sepo.hosts.llamafactory.chain_steps import Step
from sepo.hosts.llamafactory.checks import check_datasets, check_names
from sepo.hosts.llamafactory.recipe import host_keys
from sepo.recipe.keys import unknown_key
from sepo.recipe.resolve import resolve
from sepo.recipe.settings import RunSettings
from sepo.recipe.stage_names import is_sepo_stage


def check_steps(steps: Sequence[Step]) -> None:
    """Check the recipes of all steps before the first one runs.

    Raises:
        SepoError: a recipe is invalid, or names data or models that do not exist.
    """
    known = host_keys()
    settings = [_check_recipe(step, known) for step in steps]
    made: set[Path] = set()
    for step, own in zip(steps, settings, strict=True):
        if step.name != "sample":
            check_names(step.recipe, own, made_earlier=lambda name: Path(name) in made)
        made.add(Path(step.output))


def _check_recipe(step: Step, known: tuple[str, ...]) -> RunSettings | None:
    """Check the keys of a step and the data sets that no step before it writes.

    Returns:
        The settings of the policy; None for other steps.
    """
    settings = None
    if step.name == "policy":
        _, settings = resolve(step.recipe, host_keys=known)
        check_datasets(_data_that_exists(step))
    elif step.name == PAIRS:
        _check_keys(step, {*known, *filter(is_own_key, step.recipe)})
    elif is_sepo_stage(step.recipe.get("stage")):
        try:
            resolve(step.recipe, host_keys=known)
        except SepoError as error:
            raise SepoError(f"step '{step.name}': {error}") from error
    elif step.name != "sample":
        _check_keys(step, known)
    if step.name != "sample" and not step.recipe.get("model_name_or_path"):
        raise SepoError(f"step '{step.name}' has no model_name_or_path; set it on top or in its section.")
    return settings


def _check_keys(step: Step, known: Collection[str]) -> None:
    for name in step.recipe:
        if name not in known:
            raise SepoError(f"step '{step.name}': {unknown_key(name, known)}")


def _data_that_exists(step: Step) -> dict[str, Any]:
    """Return the recipe of a policy with the data sets that no step writes."""
    if step.recipe.get("dataset") != PAIRS:
        return step.recipe
    if step.declares is None:
        return {}
    evaluation_entries(step.recipe, folder=step.declares)
    return {"eval_dataset": step.recipe["eval_dataset"], "dataset_dir": step.declares}
