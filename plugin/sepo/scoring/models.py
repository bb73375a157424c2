"""Loading of frozen scoring models by the host, outside the training engine, with as few copies as possible."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from sepo.forward.sequences import ScoringModel
from sepo.recipe.model_specs import ModelSpec, OracleSpec
from sepo.scoring.hub import hub_access
from sepo.scoring.model_files import local_spec


@contextlib.contextmanager
def plain_loading() -> Iterator[None]:
    """Disable the training engine's model loading: ZeRO-3 and RAM-efficient FSDP would leave the weights empty."""
    from transformers.integrations import deepspeed

    config_ref = deepspeed._hf_deepspeed_config_weak_ref
    fsdp = {name: os.environ.pop(name) for name in ("FSDP_CPU_RAM_EFFICIENT_LOADING",) if name in os.environ}
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config_ref
        os.environ.update(fsdp)


@functools.singledispatch
def load_frozen(model_args: Any, spec: ModelSpec, adapters: Sequence[str]) -> Any:
    """Load a model with adapters for inference as the host does; hosts register by the type of their model arguments.

    Args:
        model_args: the host's model arguments, which give dtype, attention implementation and hub access.
        spec: the model, a local directory; ``spec.adapters`` is ignored.
        adapters: local directories of adapters, applied in this order.
    """
    raise TypeError(f"no host has registered a model loader for {type(model_args).__name__}")


def load_scoring_model(spec: ModelSpec, *, model_args: Any, device: torch.device, key: str = "model") -> ScoringModel:
    """Load one frozen model with its adapters, in eval mode.

    Args:
        spec: the model.
        model_args: the host's model arguments, which give dtype, attention implementation and hub access.
        device: device on which it runs.
        key: the recipe key that names it, for the message.

    Raises:
        SepoError: If its files are missing; a run checks that before it loads any model.
    """
    spec = local_spec(spec, key=key, access=hub_access(model_args))
    with plain_loading():
        model = load_frozen(model_args, spec, spec.adapters)
    return ScoringModel(placed(model.eval(), device), contextlib.nullcontext)


def load_scoring_models(
    oracle: OracleSpec, *, model_args: Any, device: torch.device
) -> tuple[ScoringModel, ScoringModel]:
    """Load the oracle and its base, as one set of weights if they differ by an adapter.

    Args:
        oracle: the two specifications.
        model_args: the host's model arguments, which give dtype, attention implementation and hub access.
        device: device on which they run.

    Returns:
        The oracle and the base, frozen, in eval mode.

    Raises:
        SepoError: If files are missing; a run checks that before it loads any model.
    """
    access = hub_access(model_args)
    local = OracleSpec(
        oracle=local_spec(oracle.oracle, key="oracle_model", access=access),
        base=local_spec(oracle.base, key="oracle_base_model", access=access),
    )
    return _loaded(local, model_args, device)


def _loaded(oracle: OracleSpec, model_args: Any, device: torch.device) -> tuple[ScoringModel, ScoringModel]:
    with plain_loading():
        if not oracle.one_set_of_weights:
            models = [load_frozen(model_args, spec, spec.adapters) for spec in (oracle.oracle, oracle.base)]
            oracle_model, base_model = (placed(model, device) for model in models)
            return ScoringModel(oracle_model, contextlib.nullcontext), ScoringModel(base_model, contextlib.nullcontext)
        from peft import PeftModel

        shared = oracle.shared_adapters
        model = load_frozen(model_args, oracle.oracle, shared)
        own = {
            name: spec.adapters[len(shared)]
            for name, spec in (("oracle", oracle.oracle), ("base", oracle.base))
            if len(spec.adapters) > len(shared)
        }
        for name, adapter in own.items():
            if isinstance(model, PeftModel):
                model.load_adapter(adapter, adapter_name=name)
            else:
                model = PeftModel.from_pretrained(model, adapter, adapter_name=name)
        model.requires_grad_(False)
        model = placed(model.eval(), device)

    def active(name: str) -> Callable[[], Any]:
        return (lambda: _adapter(model, name)) if name in own else (lambda: model.disable_adapter())

    return ScoringModel(model, active("oracle")), ScoringModel(model, active("base"))


@contextlib.contextmanager
def _adapter(model: Any, name: str) -> Iterator[None]:
    model.set_adapter(name)
    yield


def quantized_loading(
    bits: int, *, model_args: Any, device: torch.device, not_quantized: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that load a model with bitsandbytes.

    Args:
        bits: 4 or 8.
        model_args: the host's model arguments, which give the dtype and the settings of 4 bits.
        device: device on which it runs.
        not_quantized: names of modules that keep their weights; None for the output head of a language model.
    """
    from transformers import BitsAndBytesConfig

    return {
        "device_map": {"": device},
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=bits == 4,
            load_in_8bit=bits == 8,
            llm_int8_skip_modules=None if not_quantized is None else list(not_quantized),
            bnb_4bit_compute_dtype=model_args.compute_dtype or torch.float32,
            bnb_4bit_quant_type=model_args.quantization_type,
            bnb_4bit_use_double_quant=model_args.double_quantization,
        ),
    }


def precision(model_args: Any) -> dict[str, str]:
    """Return what scores depend on in the precision of models: ``compute_dtype``, and ``infer_dtype`` if it is set.

    Args:
        model_args: the host's model arguments.
    """
    found = {"compute_dtype": str(model_args.compute_dtype).removeprefix("torch.")}
    chosen = getattr(model_args, "infer_dtype", "auto")
    return found if chosen == "auto" else {**found, "infer_dtype": str(chosen)}


def placed(model: Any, device: torch.device) -> Any:
    """Return a model on a device; a quantized one stays where it was loaded."""
    return model if getattr(model, "quantization_method", None) else model.to(device)


def give_memory_back() -> None:
    """Release the memory of a dropped model before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
