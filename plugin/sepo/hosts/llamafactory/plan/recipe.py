"""The part of a recipe that determines memory: model configurations, precision, batch, optimizer and engine."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sepo.errors import SepoError
from sepo.hosts.llamafactory.hub import access_in, policy_in
from sepo.hosts.llamafactory.recipe import host_keys
from sepo.memory.shapes import Adapters, Trained
from sepo.recipe.comparison import refuse_comparison
from sepo.recipe.keys import as_flag, as_number, names_of
from sepo.recipe.model_specs import ModelSpec
from sepo.recipe.reference import own_start, reference_spec
from sepo.recipe.resolve import resolve
from sepo.recipe.settings import RunSettings
from sepo.recipe.stage_names import check_stage, is_sepo_stage
from sepo.scoring.hub import HubAccess
from sepo.scoring.hub_files import ADAPTER
from sepo.scoring.model_files import configuration, model_files

FSDP = "FSDP"
"""Name of the engine in ``Engine``."""

_HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Engine:
    """Sharding of weights, gradients and optimizer states over processes.

    Args:
        processes: number of processes, with one device each.
        zero: DeepSpeed's ZeRO stage, 3 for FSDP, 0 for neither.
        name: display name.
        optimizer_offloaded: whether optimizer states are in host memory.
        weights_offloaded: whether weights are in host memory.
    """

    processes: int = 1
    zero: int = 0
    name: str = "one process"
    optimizer_offloaded: bool = False
    weights_offloaded: bool = False


@dataclass(frozen=True)
class HowLoaded:
    """How the models of a recipe are loaded.

    Args:
        dtype: dtype in which frozen weights are loaded; None for the model's own.
        double_quantization: whether the scales of 4-bit weights are quantized.
        on_cpu: whether the recipe runs on a CPU.
        access: access to the hub.
    """

    dtype: torch.dtype | None
    double_quantization: bool
    on_cpu: bool
    access: HubAccess


@dataclass(frozen=True)
class PlannedPolicy(HowLoaded):
    """The properties of a policy in training that determine its memory, in addition to how models are loaded.

    Args:
        policy: the policy.
        kind: ``lora``, ``full`` or ``freeze``.
        trained: the weights of the policy that are trained.
        autocast: dtype of mixed precision, or None.
        rows: ``per_device_train_batch_size``.
        cutoff: maximum number of tokens of a row; of the prompt, if responses are sampled.
        checkpointing: whether gradient checkpointing is on.
        optimizer: name of the optimizer.
        engine: processes and sharding.
    """

    policy: ModelSpec
    kind: str
    trained: Trained
    autocast: torch.dtype | None
    rows: int
    cutoff: int
    checkpointing: bool
    optimizer: str
    engine: Engine


@dataclass(frozen=True)
class PlannedRun(PlannedPolicy):
    """The properties of a run on pairs that determine its memory.

    Args:
        settings: the run's settings.
        reference: a second model that is in memory while the policy trains, or None.
        reads_chosen: whether all chosen tokens are read, selected or not (``pref_ftx``).
    """

    settings: RunSettings
    reference: ModelSpec | None
    reads_chosen: bool

    @property
    def pairs(self) -> int:
        """Number of pairs of a device batch."""
        return self.rows


def how_loaded(recipe: Mapping[str, Any]) -> HowLoaded:
    """Read from a recipe how its models are loaded.

    Raises:
        SepoError: a value is not of its key's type.
    """
    half = _half(recipe)
    return HowLoaded(
        dtype=None if half is None else _HALF[half],
        double_quantization=_flag(recipe, "double_quantization", default=True),
        on_cpu=_flag(recipe, "use_cpu"),
        access=access_in(recipe),
    )


def _half(recipe: Mapping[str, Any]) -> str | None:
    if _flag(recipe, "pure_bf16") or _flag(recipe, "bf16"):
        return "bfloat16"
    return "float16" if _flag(recipe, "fp16") else None


def cutoff_of(recipe: Mapping[str, Any]) -> int:
    """Return the maximum number of tokens of a row."""
    return number_of(recipe, "cutoff_len") or 2048


def planned_run(recipe: Mapping[str, Any], *, processes: int = 1) -> PlannedRun:
    """Read the properties that determine memory from a recipe of one of sepo's stages.

    Args:
        recipe: keys and values.
        processes: number of training processes.

    Raises:
        SepoError: the recipe is invalid, or its stage is not one of sepo's.
    """
    refuse_comparison(recipe)
    stage = None if recipe.get("stage") is None else str(recipe["stage"])
    if not is_sepo_stage(stage):
        check_stage(stage)
        raise SepoError(f"stage is {stage or 'sft (the default)'}; sepo plan supports sepo's stages only; set stage.")
    policy = planned_policy(recipe, processes=processes)
    _, settings = resolve(dict(recipe), host_keys=host_keys(), origins=getattr(recipe, "origins", None))
    return PlannedRun(
        **vars(policy),
        settings=settings,
        reference=separate_reference(recipe, policy.kind) if settings.runs_reference else None,
        reads_chosen=bool(as_number("pref_ftx", recipe.get("pref_ftx") or 0.0, float)),
    )


def planned_policy(recipe: Mapping[str, Any], *, processes: int) -> PlannedPolicy:
    """Read the properties that determine a policy's memory.

    Args:
        recipe: keys and values.
        processes: number of training processes.

    Raises:
        SepoError: a value is invalid, or the recipe has no policy.
    """
    if not recipe.get("model_name_or_path"):
        raise SepoError("model_name_or_path is missing; set it to the policy.")
    kind = str(recipe.get("finetuning_type") or "lora")
    if kind not in ("lora", "full", "freeze"):
        raise SepoError(f"finetuning_type is {kind}; sepo plan supports lora, full and freeze.")
    pure, how = _flag(recipe, "pure_bf16"), how_loaded(recipe)
    return PlannedPolicy(
        **vars(how),
        policy=own_start(recipe).with_adapters(0),
        kind=kind,
        trained=Trained(_adapters(recipe) if kind == "lora" else None, everything=kind != "lora", in_float32=not pure),
        autocast=None if pure else how.dtype,
        rows=number_of(recipe, "per_device_train_batch_size") or 8,
        cutoff=cutoff_of(recipe),
        checkpointing=not _flag(recipe, "disable_gradient_checkpointing"),
        optimizer=str(recipe.get("optim") or "adamw_torch"),
        engine=_engine(recipe, processes),
    )


def model_config(spec: ModelSpec, *, key: str, access: HubAccess) -> Any:
    """Load a model's configuration from a local directory, the hub's cache or the hub, without its weights.

    Raises:
        SepoError: the configuration cannot be read, or needs code that is not part of transformers.
    """
    config = configuration(spec, key=key, access=access)
    if type(config).__module__.startswith("transformers_modules"):
        raise SepoError(f"{key}: '{spec.model}' has its own code; sepo plan supports models of transformers only.")
    return config if hasattr(config, "num_hidden_layers") else config.get_text_config()


def separate_reference(recipe: Mapping[str, Any], kind: str) -> ModelSpec | None:
    """Return the reference of a recipe that needs one, if it is a second model in memory.

    Args:
        recipe: keys and values.
        kind: ``lora``, ``full`` or ``freeze``.

    Returns:
        None if the reference is the policy without its adapter, or its starting adapter.
    """
    key, spec = reference_spec(recipe)
    if key != "ref_model" and recipe.get("ref_model_adapters"):
        return spec.with_adapters(0)
    own_start = key != "ref_model"
    return None if own_start and kind == "lora" else spec


def _adapters(recipe: Mapping[str, Any]) -> Adapters:
    policy = policy_in(recipe)
    if policy.adapters and not _flag(recipe, "create_new_adapter"):
        found = model_files(
            policy.adapters[-1],
            key="adapter_name_or_path",
            marker=ADAPTER,
            access=access_in(recipe),
            revision=policy.revisions_of_adapters[-1],
            need="config",
        )
        values = json.loads((found.folder / ADAPTER).read_text(encoding="utf-8"))
        targets = values.get("target_modules") or "all"
        return Adapters(
            int(values.get("r", 8)),
            ("all",) if isinstance(targets, str) else tuple(sorted(targets)),
            tuple(values.get("modules_to_save") or ()),
        )
    return Adapters(
        number_of(recipe, "lora_rank") or 8,
        names_of(recipe.get("lora_target")) or ("all",),
        names_of(recipe.get("additional_target")),
    )


def _engine(recipe: Mapping[str, Any], processes: int) -> Engine:
    if recipe.get("fsdp") or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        in_host_memory = "offload" in str(recipe.get("fsdp"))
        return Engine(processes, 3, FSDP, optimizer_offloaded=in_host_memory, weights_offloaded=in_host_memory)
    given = recipe.get("deepspeed")
    if not given:
        return Engine(processes, 0, "one process" if processes == 1 else "DDP")
    values = given if isinstance(given, Mapping) else _json_of(str(given))
    zero = values.get("zero_optimization") or {}
    stage = int(zero.get("stage", 0))

    def offloaded(what: str) -> bool:
        return (zero.get(what) or {}).get("device", "none") != "none"

    return Engine(
        processes, stage, f"DeepSpeed ZeRO-{stage}", offloaded("offload_optimizer"), offloaded("offload_param")
    )


def _json_of(name: str) -> dict[str, Any]:
    file = Path(name).expanduser()
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SepoError(f"deepspeed: '{name}' cannot be read as JSON (from {Path.cwd()}): {error}") from error
    return values


def _flag(recipe: Mapping[str, Any], key: str, *, default: bool = False) -> bool:
    value = recipe.get(key)
    return default if value is None else as_flag(key, value)


def number_of(recipe: Mapping[str, Any], key: str) -> int | None:
    """Return a whole number of a recipe, or None if it is not set.

    Raises:
        SepoError: the value is no number.
    """
    value = recipe.get(key)
    return None if value in (None, "") else int(as_number(key, value, int))
