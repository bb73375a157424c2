"""Axolotl's config in the interface that ``sepo.scoring`` expects of a host, and the loader of frozen models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sepo.hosts.axolotl.hub import access_in
from sepo.recipe.model_specs import ModelSpec
from sepo.scoring.hub import HubAccess, hub_access
from sepo.scoring.models import load_frozen, quantized_loading


@dataclass(frozen=True)
class ModelArguments:
    """Model arguments from the config; the names are those of LLaMA-Factory's arguments.

    Attributes:
        compute_dtype: None if the run's is float32: a scoring model then has the dtype of its weights.
    """

    model_name_or_path: str
    access: HubAccess
    compute_dtype: torch.dtype | None
    trust_remote_code: bool
    rope_scaling: Any = None
    quantization_type: str = "nf4"
    double_quantization: bool = True


@dataclass(frozen=True)
class DataArguments:
    """Data arguments from the config."""

    template: str | None
    cutoff_len: int
    dataset: tuple[str, ...]


@dataclass(frozen=True)
class RunArguments:
    """Arguments of the run and the process: output, ranks, device, precision."""

    output_dir: str
    process_index: int
    world_size: int
    device: torch.device
    bf16: bool
    fp16: bool
    deepspeed_plugin: Any = None


@dataclass(frozen=True)
class HostArguments:
    """Model, data and run arguments, as ``sepo.scoring`` takes them."""

    model_args: ModelArguments
    data_args: DataArguments
    training_args: RunArguments

    def as_dict(self) -> dict[str, Any]:
        """Return the arguments by keyword name."""
        return {"model_args": self.model_args, "data_args": self.data_args, "training_args": self.training_args}


def host_arguments(cfg: Any) -> HostArguments:
    """Read the arguments from a validated config.

    Args:
        cfg: Axolotl's config.
    """
    dtype = cfg.torch_dtype
    rope = (cfg.overrides_of_model_config or {}).get("rope_scaling")
    names = [item.get("path") for item in cfg.datasets or []]
    return HostArguments(
        model_args=ModelArguments(
            model_name_or_path=cfg.base_model,
            access=access_in(cfg),
            compute_dtype=None if dtype in (None, torch.float32) else dtype,
            trust_remote_code=bool(cfg.trust_remote_code),
            rope_scaling=None if rope is None else str(rope),
        ),
        data_args=DataArguments(
            template=cfg.chat_template or "tokenizer_default",
            cutoff_len=int(cfg.sequence_len),
            dataset=tuple(str(name) for name in names),
        ),
        training_args=RunArguments(
            output_dir=str(cfg.output_dir),
            process_index=int(os.environ.get("RANK", 0)),
            world_size=int(os.environ.get("WORLD_SIZE", 1)),
            device=_device(),
            bf16=bool(cfg.bf16),
            fp16=bool(cfg.fp16),
            deepspeed_plugin=cfg.deepspeed or None,
        ),
    )


def on_several_cpus() -> bool:
    """Return whether this is one of several processes without an accelerator (torchrun on a machine without a GPU)."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.cuda.is_available()


def train_on_several_cpus() -> None:
    """Configure the processes of torchrun as one run on a machine without an accelerator, before Axolotl initializes.

    The first ``PartialState`` is shared: without ``cpu=True`` every process would train alone. Axolotl queries CUDA for
    peer access between the ranks, which raises ``RuntimeError`` if torch is built with CUDA and the machine has no
    driver; a build without CUDA raises ``AssertionError``, which Axolotl treats as True.
    """
    from accelerate import PartialState
    from axolotl.utils import environment

    PartialState(cpu=True)
    environment.check_cuda_p2p_support = lambda: True


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


@hub_access.register(ModelArguments)
def _access_of(model_args: ModelArguments) -> HubAccess:
    return model_args.access


@load_frozen.register(ModelArguments)
def load_with_transformers(model_args: ModelArguments, spec: ModelSpec, adapters: Sequence[str]) -> Any:
    """Load a frozen model (see ``load_frozen``) without Axolotl's loader, which patches models for training."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    bits = spec.quantization_bit
    more = {} if bits is None else quantized_loading(bits, model_args=model_args, device=_device())
    model = AutoModelForCausalLM.from_pretrained(
        spec.model,
        dtype=model_args.compute_dtype or "auto",
        trust_remote_code=model_args.trust_remote_code,
        **more,
    )
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter)
        if spec.quantization_bit is None:
            model = model.merge_and_unload()
    model.requires_grad_(False)
    return model
