"""Checks of the steps of `sepo pipeline` before the first one runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from sepo.credit.in_run import check_credit_data
from sepo.errors import SepoError
from sepo.hosts.llamafactory.chain_pairs import PAIRS, evaluation_entries
from sepo.hosts.llamafactory.chain_steps import Step
from sepo.hosts.llamafactory.checks import check_datasets, check_names, datasets_are_ranked
from sepo.hosts.llamafactory.hub import access_in
from sepo.hosts.llamafactory.prompt_rows import file_prompts
from sepo.hosts.llamafactory.recipe import host_keys
from sepo.judges import find_judge
from sepo.pairs.settings import pairs_settings
from sepo.recipe.keys import SAMPLING_KEYS, SEPO_KEYS, unknown_key
from sepo.recipe.resolve import resolve
from sepo.recipe.response_rewards import resolve_rewards
from sepo.recipe.settings import RunSettings
from sepo.recipe.stage_names import is_sepo_stage
from sepo.scoring.hub_files import ADAPTER, MODEL
from sepo.scoring.model_files import model_files


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
        check_credit_data(settings.credit_data)
        check_datasets(_data_that_exists(step))
    elif step.name == PAIRS:
        _check_keys(step, (*known, *SAMPLING_KEYS, *SEPO_KEYS))
        _check_pairs(step.recipe)
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


def _check_pairs(recipe: Mapping[str, Any]) -> None:
    """Check the prompts and the judge of a step ``pairs``, without fetching weights.

    Raises:
        SepoError: a key, a file of prompts, a data set or the judge is invalid.
    """
    settings, rewards = pairs_settings(recipe), resolve_rewards(recipe)
    judge = find_judge(rewards.judge, **rewards.options) if rewards.is_verifier else None
    if settings.prompts:
        file_prompts(settings.prompts, option="pairs_prompts", judge=judge, column=rewards.expected_column)
    elif not recipe.get("dataset"):
        raise SepoError(
            "dataset is missing; name the data set with the prompts on top, or files in pairs: {pairs_prompts: ...}."
        )
    else:
        datasets_are_ranked(recipe)
    if rewards.model is not None:
        where: dict[str, Any] = {"access": access_in(recipe), "need": "config"}
        spec = rewards.model
        model_files(spec.model, key="judge_model", marker=MODEL, revision=spec.revision, **where)
        for name, revision in zip(spec.adapters, spec.revisions_of_adapters, strict=True):
            model_files(name, key="judge_model_adapters", marker=ADAPTER, revision=revision, **where)


def _check_keys(step: Step, known: Collection[str]) -> None:
    for name in step.recipe:
        if name not in known:
            raise SepoError(f"step '{step.name}': {unknown_key(name, known)}")


def _data_that_exists(step: Step) -> dict[str, Any]:
    """Return the recipe of a policy with the data sets that no step writes."""
    if step.pairs is None:
        return step.recipe
    if step.declares is None:
        return {}
    evaluation_entries(step.recipe, folder=step.declares)
    return {"eval_dataset": step.recipe["eval_dataset"], "dataset_dir": step.declares}
