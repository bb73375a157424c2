"""What a recipe says about memory: models by their configurations, precision, batch, optimizer and engine."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sepo.errors import SepoError
from sepo.hosts.llamafactory.recipe import host_keys
from sepo.memory.shapes import Adapters, Trained
from sepo.recipe.keys import as_flag, as_number, names_of
from sepo.recipe.reference_keys import reference_spec
from sepo.recipe.resolve import resolve
from sepo.recipe.settings import ModelSpec, RunSettings
from sepo.recipe.stages import check_stage, is_ours

_HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Engine:
    """How weights, gradients and optimizer states are spread over processes.

    Args:
        processes: how many; each has a device of its own.
        zero: DeepSpeed's stage, 3 for FSDP, 0 for neither.
        name: as the user calls it.
        optimizer_offloaded: whether optimizer states are in the host's memory.
        weights_offloaded: whether weights are.
    """

    processes: int = 1
    zero: int = 0
    name: str = "one process"
    optimizer_offloaded: bool = False
    weights_offloaded: bool = False


@dataclass(frozen=True)
class PlannedRun:
    """A recipe's run as far as memory goes.

    Args:
        settings: ours.
        policy: the policy by name.
        reference: a second model that is in memory while the policy trains, or None.
        kind: ``lora``, ``full`` or ``freeze``.
        trained: which weights of the policy train.
        dtype: in which frozen weights are loaded.
        autocast: the dtype of mixed precision, or None.
        double_quantization: of 4-bit scales.
        reads_chosen: whether all chosen tokens are read, whatever is selected (``pref_ftx``).
        pairs: of a device batch.
        cutoff: most tokens of prompt and one answer.
        checkpointing: gradient checkpointing.
        optimizer: its name.
        engine: processes.
        on_cpu: whether the recipe runs on a CPU.
        trust_remote_code: whether configurations may bring code.
    """

    settings: RunSettings
    policy: ModelSpec
    reference: ModelSpec | None
    kind: str
    trained: Trained
    dtype: torch.dtype | None
    autocast: torch.dtype | None
    double_quantization: bool
    reads_chosen: bool
    pairs: int
    cutoff: int
    checkpointing: bool
    optimizer: str
    engine: Engine
    on_cpu: bool
    trust_remote_code: bool


def planned_run(recipe: Mapping[str, Any], *, processes: int = 1) -> PlannedRun:
    """Read what memory depends on out of a recipe of one of our stages.

    Args:
        recipe: keys and values.
        processes: how many processes train.

    Raises:
        SepoError: the recipe is wrong, or its stage is none of ours.
    """
    stage = None if recipe.get("stage") is None else str(recipe["stage"])
    if not is_ours(stage):
        check_stage(stage)
        raise SepoError(f"stage is {stage or 'sft (the default)'}; plan accounts for our stages only.")
    if not recipe.get("model_name_or_path"):
        raise SepoError("model_name_or_path is missing; the recipe's policy is expected.")
    _, settings = resolve(dict(recipe), host_keys=host_keys())
    kind = str(recipe.get("finetuning_type") or "lora")
    if kind not in ("lora", "full", "freeze"):
        raise SepoError(f"finetuning_type is {kind}; plan accounts for lora, full and freeze.")
    pure = _flag(recipe, "pure_bf16")
    half = "bfloat16" if pure or _flag(recipe, "bf16") else "float16" if _flag(recipe, "fp16") else None
    bits = _number(recipe, "quantization_bit")
    return PlannedRun(
        settings=settings,
        policy=ModelSpec(str(recipe["model_name_or_path"]), (), bits),
        reference=_reference(recipe, settings, kind),
        kind=kind,
        trained=Trained(_adapters(recipe) if kind == "lora" else None, everything=kind != "lora", in_float32=not pure),
        dtype=None if half is None else _HALF[half],
        autocast=None if half is None or pure else _HALF[half],
        double_quantization=_flag(recipe, "double_quantization", default=True),
        reads_chosen=bool(as_number("pref_ftx", recipe.get("pref_ftx") or 0.0, float)),
        pairs=_number(recipe, "per_device_train_batch_size") or 8,
        cutoff=_number(recipe, "cutoff_len") or 2048,
        checkpointing=not _flag(recipe, "disable_gradient_checkpointing"),
        optimizer=str(recipe.get("optim") or "adamw_torch"),
        engine=_engine(recipe, processes),
        on_cpu=_flag(recipe, "use_cpu"),
        trust_remote_code=_flag(recipe, "trust_remote_code"),
    )


def model_config(name: str, *, key: str, trust_remote_code: bool = False) -> Any:
    """A model's configuration, from a folder, the hub's cache or the hub; its weights are not fetched.

    Raises:
        SepoError: there is none.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:  # the hub's client and transformers raise many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SepoError(f"{key}: the configuration of '{name}' cannot be read: {reason}") from error
    if type(config).__module__.startswith("transformers_modules"):
        raise SepoError(f"{key}: '{name}' brings its own code; plan accounts for models of transformers.")
    return config if hasattr(config, "num_hidden_layers") else config.get_text_config()


def _reference(recipe: Mapping[str, Any], settings: RunSettings, kind: str) -> ModelSpec | None:
    if not settings.runs_reference:
        return None
    key, spec = reference_spec(recipe)
    if key != "ref_model" and recipe.get("ref_model_adapters"):
        return ModelSpec(str(recipe["model_name_or_path"]), (), spec.quantization_bit)
    own_start = key != "ref_model"
    return None if own_start and kind == "lora" else spec


def _adapters(recipe: Mapping[str, Any]) -> Adapters:
    given = recipe.get("adapter_name_or_path")
    if given and not _flag(recipe, "create_new_adapter"):
        last = (given if isinstance(given, list) else str(given).split(","))[-1]
        file = Path(str(last).strip()).expanduser() / "adapter_config.json"
        if file.is_file():
            values = json.loads(file.read_text(encoding="utf-8"))
            targets = values.get("target_modules") or "all"
            return Adapters(
                int(values.get("r", 8)),
                ("all",) if isinstance(targets, str) else tuple(sorted(targets)),
                tuple(values.get("modules_to_save") or ()),
            )
    return Adapters(
        _number(recipe, "lora_rank") or 8,
        names_of(recipe.get("lora_target")) or ("all",),
        names_of(recipe.get("additional_target")),
    )


def _engine(recipe: Mapping[str, Any], processes: int) -> Engine:
    if recipe.get("fsdp") or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        in_host_memory = "offload" in str(recipe.get("fsdp"))
        return Engine(processes, 3, "FSDP", optimizer_offloaded=in_host_memory, weights_offloaded=in_host_memory)
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


def _number(recipe: Mapping[str, Any], key: str) -> int | None:
    value = recipe.get(key)
    return None if value in (None, "") else int(as_number(key, value, int))
