"""A recipe in LLaMA-Factory: whether the host is there, the keys that it knows, and a recipe checked and parsed."""

from __future__ import annotations

import importlib
import os
from dataclasses import fields
from typing import Any

from sepo.errors import SepoError
from sepo.installation import AXOLOTL, LLAMAFACTORY, install_command, is_installed, packages, what_is_wrong
from sepo.recipe.keys import OUR_KEYS
from sepo.recipe.resolve import Arguments, given_keys, resolve, stage_of
from sepo.recipe.settings import RunSettings
from sepo.recipe.stages import STAGES, check_stage, is_ours

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


_IN_AXOLOTL = {"train": " Here run: axolotl train config.yaml"}
"""By command: what an environment with Axolotl has in its place."""


def require_host(command: str) -> None:
    """Refuse a command where LLaMA-Factory is not installed.

    Args:
        command: the words after ``sepo``, for the message.

    Raises:
        SepoError: with what installs it, or what belongs to the host that is there.
    """
    if is_installed(LLAMAFACTORY.name):
        return
    if not is_installed(AXOLOTL.name):
        raise SepoError(f"LLaMA-Factory is not installed here; run: {install_command(LLAMAFACTORY.name)}")
    raise SepoError(
        f"this environment has Axolotl, and `sepo {command}` needs LLaMA-Factory, in an environment of its own "
        f"(docs/axolotl.md#commands).{_IN_AXOLOTL.get(command, '')}"
    )


def load_host(command: str, module: str = "llamafactory.train.tuner") -> None:
    """Import LLaMA-Factory, or say what keeps it from being imported and what repairs that.

    Every command that uses the host calls this first; later imports of the host find its modules loaded.

    Args:
        command: the words after ``sepo``, for the message.
        module: the host's, with everything that the command needs of the environment.

    Raises:
        SepoError: the host is not installed, or does not load.
    """
    require_host(command)
    try:
        importlib.import_module(module)
    except SepoError:  # of a stage that is registered with the module, after `sepo enable`
        raise
    except Exception as error:  # packages that do not fit each other raise anything while they are imported
        raise SepoError(_why_not_loaded(error)) from error


def _why_not_loaded(error: Exception) -> str:
    found = packages(LLAMAFACTORY)
    wrong = [package for package in found if package.failure] or [package for package in found if not package.sound]
    if wrong:
        return f"LLaMA-Factory cannot be imported: {what_is_wrong(LLAMAFACTORY, wrong)}"
    reason = (str(error).strip().splitlines() or ["no message"])[0]
    return (
        f"LLaMA-Factory cannot be imported ({type(error).__name__}: {reason}), though the packages that it builds on "
        f"load; run: {install_command(LLAMAFACTORY.name)}"
    )


def quiet_on_one_device() -> None:
    """Before the host is imported: let it log errors only, and see one GPU, for it refuses several in one process."""
    os.environ.setdefault("LLAMAFACTORY_VERBOSITY", "ERROR")
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def refuse_without_scoring(settings: RunSettings | None) -> None:
    """Refuse a recipe that computes nothing before it trains.

    Args:
        settings: the recipe's, or None where its stage is the host's.

    Raises:
        SepoError: says what the recipe has instead.
    """
    if settings is None:
        raise SepoError(
            "this recipe scores nothing: its stage is LLaMA-Factory's own. Scores come before stage sepo, or any stage "
            "of ours with token_scorer: oracle, treg_rewards or ref_precompute."
        )
    if not settings.scores_before_training:
        raise SepoError(
            f"this recipe scores nothing before it trains: its token_scorer is {settings.method.scorer}, which "
            "needs no score store, and neither token rewards nor ref_precompute are on. Set token_scorer: oracle (or "
            "contrastive, or a registered one), treg_alpha or ref_precompute: true."
        )
