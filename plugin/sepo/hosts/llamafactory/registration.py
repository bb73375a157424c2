"""Makes `llamafactory.train.tuner` know our stages. See ../PATCHES.md for why each name is rebound."""

from __future__ import annotations

import functools
import logging
import os
from dataclasses import fields
from types import ModuleType
from typing import Any

from sepo.errors import SepoError
from sepo.hosts.errors import tell
from sepo.recipe.keys import OUR_KEYS
from sepo.recipe.resolve import Arguments, given_keys, resolve, stage_of
from sepo.recipe.settings import RunSettings
from sepo.recipe.stages import STAGES, check_stage, is_ours

RAY_WORKER = "SEPO_RAY_WORKER"
SCORE_ONLY = "SEPO_SCORE_ONLY"
"""Variable by which `sepo score` tells the processes that it starts that they end after scoring."""

_SETTINGS = "sepo_settings"
"""Attribute of the host's parsed finetuning arguments that carries ours from its parser to its dispatch."""
_RECIPE = "sepo_recipe"
"""Another, with the recipe's keys and values."""


def host_keys() -> tuple[str, ...]:
    """Every key of a training recipe that the host knows."""
    from llamafactory.hparams import (
        DataArguments,
        FinetuningArguments,
        GeneratingArguments,
        ModelArguments,
        RayArguments,
        TrainingArguments,
    )

    groups = (ModelArguments, DataArguments, TrainingArguments, FinetuningArguments, GeneratingArguments, RayArguments)
    return tuple(item.name for group in groups for item in fields(group) if item.init)


def _enabled(variable: str) -> bool:
    return os.environ.get(variable, "0").lower() in ("true", "y", "1")


def check_recipe(args: Arguments, *, download: bool = True) -> tuple[Arguments, RunSettings | None]:
    """Split a recipe and look for everything that can be found wrong before weights are loaded.

    Args:
        args: the recipe as a mapping, or the words of a command line.
        download: ask the hub for scoring models that are no folders here.

    Returns:
        What the host parses, and our settings; a recipe of a host's stage comes back as it was, with None.

    Raises:
        SepoError: the recipe is wrong, or names data or models that are not there.
    """
    stage = stage_of(args)
    if not is_ours(stage):
        check_stage(stage)
        ours = [name for name in given_keys(args) if name in OUR_KEYS]
        if ours and not _enabled("ALLOW_EXTRA_ARGS"):
            raise SepoError(
                f"{ours[0]} is set, but stage {stage or 'sft'} is LLaMA-Factory's, which does not know it; write one "
                f"of our stages ({', '.join(STAGES)}), or remove {ours[0]}."
            )
        return args, None
    from sepo.hosts.llamafactory.checks import check_datasets, check_models

    if _enabled("USE_MCA"):
        raise SepoError(f"stage {stage} does not run under USE_MCA (Megatron); unset it.")
    host, settings = resolve(args, host_keys=host_keys(), allow_extra_keys=_enabled("ALLOW_EXTRA_ARGS"))
    given = given_keys(args)
    check_datasets(given)
    check_models(given, settings, download=download)
    return host, settings


def get_train_args(args: Arguments) -> Any:
    """The host's five argument objects for a recipe; ours also carries the resolved settings.

    Raises:
        SepoError: the recipe is wrong, or names data or models that are not there.
    """
    from llamafactory.hparams import get_train_args as parse

    host, settings = check_recipe(args)
    if settings is None:
        return parse(host)
    try:
        parsed = parse(host)
    except ValueError as error:
        raise SepoError(str(error)) from error
    setattr(parsed[3], _SETTINGS, settings)
    setattr(parsed[3], _RECIPE, given_keys(args))
    return parsed


def settings_of(finetuning_args: Any) -> RunSettings | None:
    """Our settings, as ``get_train_args`` has attached them to the host's finetuning arguments."""
    settings: RunSettings | None = getattr(finetuning_args, _SETTINGS, None)
    return settings


def recipe_of(finetuning_args: Any) -> dict[str, Any]:
    """The recipe's keys and values, as resolved from file and command line; empty for a stage of the host's."""
    recipe: dict[str, Any] = getattr(finetuning_args, _RECIPE, {})
    return recipe


def register(tuner: ModuleType) -> None:
    """Rebind what a training run passes through in ``llamafactory.train.tuner``; twice is as good as once."""
    if getattr(tuner, "_sepo_registered", False):
        return
    from sepo.hosts.llamafactory.ray_worker import Worker

    host_run_dpo, host_training_function = tuner.run_dpo, tuner._training_function

    def run_dpo(
        model_args: Any, data_args: Any, training_args: Any, finetuning_args: Any, callbacks: Any = None
    ) -> None:
        settings = getattr(finetuning_args, _SETTINGS, None)
        if settings is None:
            return host_run_dpo(model_args, data_args, training_args, finetuning_args, callbacks)
        from sepo.hosts.llamafactory.workflow import run_stage

        _log_beside_host()
        return run_stage(model_args, data_args, training_args, finetuning_args, callbacks, settings=settings)

    @functools.wraps(host_training_function)
    def training_function(config: dict[str, Any]) -> None:
        try:
            if os.environ.get(SCORE_ONLY):
                from sepo.hosts.llamafactory.scoring_pass import score

                _log_beside_host()
                score(get_train_args(config["args"]))
            elif is_ours(stage_of(config["args"])):
                from sepo.hosts.llamafactory.plan.run import train_with_plan

                _log_beside_host()
                train_with_plan(host_training_function, config)
            else:
                host_training_function(config)
        except SepoError as error:
            if os.environ.get(RAY_WORKER):  # Ray carries the exception to the driver
                raise
            tell(error)
            raise SystemExit(2) from None

    tuner.get_train_args = get_train_args  # type: ignore[attr-defined]
    tuner.run_dpo = run_dpo  # type: ignore[attr-defined]
    tuner._training_function = training_function  # type: ignore[attr-defined]
    tuner.sepo_host_worker = tuner.Worker  # type: ignore[attr-defined]
    tuner.Worker = Worker  # type: ignore[attr-defined]
    tuner._sepo_registered = True  # type: ignore[attr-defined]


def _log_beside_host() -> None:
    """Send our log lines where the host's go, from the first process of each machine only."""
    host, ours = logging.getLogger("llamafactory"), logging.getLogger("sepo")
    for handler in host.handlers:  # LLaMA Board's is added when the run begins, after our first lines
        ours.addHandler(handler)
    ours.propagate = False
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    ours.setLevel(host.level if first else logging.ERROR)
