"""Recipes in LLaMA-Factory: import of the host, the host's keys, and checking and parsing of a recipe."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from sepo.errors import SepoError
from sepo.installation import (
    AXOLOTL,
    LLAMAFACTORY,
    install_command,
    is_installed,
    packages,
    what_is_untested,
    what_is_wrong,
)
from sepo.recipe.comparison import refuse_comparison
from sepo.recipe.given import Arguments, given_keys, stage_of
from sepo.recipe.keys import SAMPLING_KEYS, SEPO_KEYS
from sepo.recipe.resolve import resolve
from sepo.recipe.rto import RtoSettings, resolve_rto
from sepo.recipe.settings import RunSettings
from sepo.recipe.stage_names import RTO, STAGES, check_stage, is_sepo_stage

SCORE_ONLY = "SEPO_SCORE_ONLY"
"""Environment variable that `sepo score` sets for its subprocesses, which then stop after scoring."""

_SETTINGS = "sepo_settings"
"""Attribute of the host's parsed finetuning arguments that carries the run's settings from parser to dispatch."""
_RECIPE = "sepo_recipe"
"""Attribute of the same object with the recipe's keys and values."""


def host_keys() -> tuple[str, ...]:
    """Return all keys of a training recipe that the host accepts."""
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


def check_recipe(
    args: Arguments,
    *,
    download: bool = True,
    score_only: bool = False,
    made_earlier: Callable[[str], bool] = lambda name: False,
) -> tuple[Arguments, RunSettings | RtoSettings | None]:
    """Split a recipe into the host's arguments and the run's settings, and run every check that needs no weights.

    Args:
        args: the recipe as a mapping, or the words of a command line.
        download: whether to fetch models that are not local directories from the hub.
        score_only: whether the run stops after scoring.
        made_earlier: without ``download``, whether a name is the output of an earlier run, which need not exist yet.

    Returns:
        The arguments for the host's parser and the resolved settings; for a host stage its recipe, without the keys of
        `sepo pairs` and sepo's keys that are null, and None.

    Raises:
        SepoError: the recipe is invalid, or names data or models that do not exist.
    """
    refuse_comparison(given_keys(args))
    stage = stage_of(args)
    if stage == RTO:
        return _checked_rto(args, download=download, made_earlier=made_earlier)
    if not is_sepo_stage(stage):
        check_stage(stage)
        own = {name: value for name, value in given_keys(args).items() if name in SEPO_KEYS}
        sepo_keys = [name for name, value in own.items() if value is not None]
        if sepo_keys and not _enabled("ALLOW_EXTRA_ARGS"):
            raise SepoError(
                f"{sepo_keys[0]} is set, but stage {stage or 'sft'} is LLaMA-Factory's, which does not support it; use "
                f"one of sepo's stages ({', '.join(STAGES)}), or remove {sepo_keys[0]}."
            )
        if isinstance(args, dict):
            unread = {*own, *SAMPLING_KEYS}
            args = {name: value for name, value in args.items() if name in sepo_keys or name not in unread}
        return args, None
    from sepo.credit.in_run import check_credit_data
    from sepo.hosts.llamafactory.checks import check_datasets, check_models

    if _enabled("USE_MCA"):
        raise SepoError(f"stage {stage} does not run under USE_MCA (Megatron); unset it.")
    host, settings = resolve(
        args,
        host_keys=host_keys(),
        allow_extra_keys=_enabled("ALLOW_EXTRA_ARGS"),
        origins=getattr(args, "origins", None),  # of a ``reading.Recipe``
    )
    given = given_keys(args)
    check_datasets(given)
    check_credit_data(settings.credit_data)
    check_models(given, settings, download=download, score_only=score_only, made_earlier=made_earlier)
    return host, settings


def _checked_rto(
    args: Arguments, *, download: bool, made_earlier: Callable[[str], bool]
) -> tuple[Arguments, RtoSettings]:
    """Do the same as ``check_recipe`` for a recipe of stage `rto`."""
    from sepo.hosts.llamafactory.checks import check_prompt_datasets, check_rto_models

    if _enabled("USE_MCA"):
        raise SepoError(f"stage {RTO} does not run under USE_MCA (Megatron); unset it.")
    host, settings = resolve_rto(
        args,
        host_keys=host_keys(),
        allow_extra_keys=_enabled("ALLOW_EXTRA_ARGS"),
        origins=getattr(args, "origins", None),
    )
    given = given_keys(args)
    check_prompt_datasets(given)
    check_rto_models(given, settings, download=download, made_earlier=made_earlier)
    return host, settings


def get_train_args(args: Arguments, *, score_only: bool = False) -> Any:
    """Parse a recipe into the host's five argument objects; for a stage of sepo's, attach the resolved settings.

    Args:
        args: the recipe as a mapping, or the words of a command line.
        score_only: whether the run loads no weights of the policy; `sepo score` sets it in all its processes.

    Raises:
        SepoError: the recipe is invalid, or names data or models that do not exist.
    """
    from llamafactory.hparams import get_train_args as parse

    from sepo.hosts.llamafactory.hub import use_resolved_files

    score_only = score_only or bool(os.environ.get(SCORE_ONLY))
    host, settings = check_recipe(args, score_only=score_only)
    if settings is None:
        return parse(host)
    try:
        parsed = parse(host)
    except ValueError as error:
        raise SepoError(str(error)) from error
    given = given_keys(args)
    if isinstance(settings, RtoSettings):
        from sepo.hosts.llamafactory.rto_arguments import check_batches

        check_batches(settings.rto, parsed[2])
    use_resolved_files(parsed[0], parsed[3], given, score_only=score_only)
    setattr(parsed[3], _SETTINGS, settings)
    setattr(parsed[3], _RECIPE, given)
    return parsed


def settings_of(finetuning_args: Any) -> RunSettings | None:
    """Return the settings of a stage that trains on pairs, attached by ``get_train_args``, or None."""
    settings = getattr(finetuning_args, _SETTINGS, None)
    return settings if isinstance(settings, RunSettings) else None


def rto_settings_of(finetuning_args: Any) -> RtoSettings | None:
    """Return the settings of stage `rto`, attached by ``get_train_args``, or None."""
    settings = getattr(finetuning_args, _SETTINGS, None)
    return settings if isinstance(settings, RtoSettings) else None


def recipe_of(finetuning_args: Any) -> dict[str, Any]:
    """Return the recipe's keys and values, as resolved from file and command line; empty for a host stage."""
    recipe: dict[str, Any] = getattr(finetuning_args, _RECIPE, {})
    return recipe


_IN_AXOLOTL = {"train": " Here run: axolotl train config.yaml"}
"""Sentence by command that names its counterpart in an environment with Axolotl."""


def require_host(command: str) -> None:
    """Raise if LLaMA-Factory is not installed.

    Args:
        command: the words after ``sepo``, for the message.

    Raises:
        SepoError: with the command that installs it, or with the counterpart for the host that is installed.
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
    """Import LLaMA-Factory, or raise an error with the cause and the command that repairs it.

    Every command that uses the host calls this first; later imports of the host find its modules loaded.

    Args:
        command: the words after ``sepo``, for the message.
        module: the host module to import; it should import every package that the command needs.

    Raises:
        SepoError: the host is not installed, or cannot be imported.
    """
    require_host(command)
    try:
        importlib.import_module(module)
    except Exception as error:  # incompatible packages raise exceptions of any type during import
        raise SepoError(_why_not_loaded(error)) from error


def _why_not_loaded(error: Exception) -> str:
    found = packages(LLAMAFACTORY)
    wrong = [package for package in found if package.failure] or [package for package in found if not package.sound]
    if wrong:
        return f"LLaMA-Factory cannot be imported: {what_is_wrong(LLAMAFACTORY, wrong)}"
    reason = (str(error).strip().splitlines() or ["no message"])[0]
    failed = f"LLaMA-Factory cannot be imported ({type(error).__name__}: {reason}), although its dependencies load"
    untested = [package for package in found if package.version is not None and not package.fits]
    if untested:
        return f"{failed}; {what_is_untested(LLAMAFACTORY, untested)}"
    return f"{failed}; run: {install_command(LLAMAFACTORY.name)}"


def quiet_on_one_device() -> None:
    """Make the host log errors only and see one GPU; call this before it is imported.

    The host refuses several GPUs in one process.
    """
    os.environ.setdefault("LLAMAFACTORY_VERBOSITY", "ERROR")
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def refuse_without_scoring(settings: RunSettings | RtoSettings | None) -> None:
    """Raise if a recipe computes no scores before training.

    Args:
        settings: settings of the recipe, or None if its stage is the host's.

    Raises:
        SepoError: naming the recipe's stage or token scorer.
    """
    if isinstance(settings, RtoSettings):
        raise SepoError(
            f"this recipe scores nothing before training: stage {RTO} samples its responses, which are scored then."
        )
    if settings is None:
        raise SepoError(
            "this recipe scores nothing: its stage is LLaMA-Factory's own. Use stage sepo, or another stage of sepo's "
            "with token_scorer: oracle, treg_rewards or ref_precompute."
        )
    if not settings.scores_before_training:
        raise SepoError(
            f"this recipe scores nothing before training: its token_scorer is {settings.method.scorer}, which needs no "
            "score store, and neither token rewards nor ref_precompute are on. Set token_scorer: oracle (or "
            "contrastive, or a registered one), treg_alpha or ref_precompute: true."
        )
