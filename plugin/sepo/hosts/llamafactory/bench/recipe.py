"""The recipe to measure: the user's model, data and training, without saving, evaluation and reporting."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sepo.errors import SepoError, nearest
from sepo.recipe.keys import RTO_KEYS, SAMPLING_KEYS, SEPO_KEYS
from sepo.recipe.stage_names import RTO, check_stage, is_sepo_stage
from sepo.recipe.stages import registered_keys, with_stage_defaults

_DROPPED = (
    "do_eval", "do_predict", "eval_dataset", "eval_on_each_dataset", "load_best_model_at_end", "metric_for_best_model",
    "greater_is_better", "early_stopping_steps", "plot_loss", "push_to_hub", "report_to", "run_name", "project",
    "resume_from_checkpoint", "overwrite_output_dir", "use_swanlab", "pissa_convert", "predict_with_generate",
    "compute_accuracy", "enable_torch_profiler", "profile_modules", "logging_dir", "output_dir",
    "include_effective_tokens_per_second", *SAMPLING_KEYS,
)  # fmt: skip
_DROPPED_FAMILIES = ("eval_", "save_", "hub_", "push_to_hub_", "swanlab_", "trackio_", "export_", "ray_")
_ENGINES = {"deepspeed": "DeepSpeed shards over processes", "fsdp": "FSDP shards over processes"}
_OFF = (None, False, "", "false", "False")


def measured_recipe(recipe: Mapping[str, Any], *, output_dir: str) -> dict[str, Any]:
    """Remove the keys of a recipe that do not concern the training step.

    Args:
        recipe: keys and values, of one of sepo's stages or of the host's ``dpo``.
        output_dir: a temporary directory that replaces the recipe's.

    Returns:
        The recipe to measure; one device batch is one step, without gradient accumulation.

    Raises:
        SepoError: the stage does not train on pairs, or the run needs more than one process.
    """
    stage = None if recipe.get("stage") is None else str(recipe["stage"])
    if not is_sepo_stage(stage) and stage != "dpo":
        check_stage(stage)
        raise SepoError(
            f"stage is {stage or 'sft (the default)'}; bench compares preference stages: add stage=dpo, or one of "
            "sepo's stages, after the recipe."
        )
    for name, reason in _ENGINES.items():
        if recipe.get(name) not in _OFF:
            raise SepoError(
                f"{name} is set, but {reason} and bench measures one process; add {name}=null after the recipe."
            )
    kept = {
        name: value
        for name, value in recipe.items()
        if name not in _DROPPED and not name.startswith(_DROPPED_FAMILIES) and value is not None
    }
    tokenized = kept.get("tokenized_path")
    if tokenized and not os.path.isdir(str(tokenized)):
        kept.pop("tokenized_path")  # the host would write tokenized rows there
    return {
        **kept,
        "stage": stage,
        "do_train": True,
        "output_dir": output_dir,
        "report_to": "none",
        "save_strategy": "no",
        "gradient_accumulation_steps": 1,
    }


def check_keys(recipe: Mapping[str, Any], *, host_keys: tuple[str, ...]) -> None:
    """Raise if a key is unknown, or is sepo's in a recipe of a host stage.

    Args:
        recipe: keys and values as the user gave them.
        host_keys: all keys that the host accepts.

    Raises:
        SepoError: with the nearest known name.
    """
    sepo_keys: tuple[str, ...] = SAMPLING_KEYS
    if is_sepo_stage(str(recipe.get("stage"))):
        own_keys = registered_keys(with_stage_defaults(recipe), taken=(*host_keys, *SEPO_KEYS))
        sepo_keys = (*SEPO_KEYS, *SAMPLING_KEYS, *own_keys)
    elif recipe.get("stage") == RTO:
        sepo_keys = (*SEPO_KEYS, *RTO_KEYS, *SAMPLING_KEYS)
    for name, value in recipe.items():
        if value is not None and name not in (*host_keys, *sepo_keys):
            hint = (
                f" It is a key of sepo's stages; add {name}=null after the recipe."
                if name in SEPO_KEYS
                else nearest(name, (*host_keys, *sepo_keys))
            )
            raise SepoError(f"unknown key '{name}'.{hint}")
