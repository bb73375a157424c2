"""Models as shapes: built from a configuration, with tensors that have no data."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

NF4_BLOCK = 64
"""Weights per scale in bitsandbytes' 4-bit quantization (its default)."""
DOUBLE_BLOCK = 256
"""Scales per second-level scale in double quantization (its default)."""

NF4_BYTES = 0.5 + 4 / NF4_BLOCK
"""Bytes per weight in 4 bits, with a float32 scale per block."""
NF4_DOUBLE_BYTES = 0.5 + (1 + 4 / DOUBLE_BLOCK) / NF4_BLOCK
"""Bytes per weight with double quantization: an 8-bit scale per block, a float32 scale per block of scales."""


@dataclass(frozen=True)
class Adapters:
    """LoRA adapters of a policy.

    Args:
        rank: rank of the adapters.
        targets: names of the adapted layers, or ``all`` for every linear layer except the head.
        also: names of modules that are fully trained in addition.
    """

    rank: int
    targets: tuple[str, ...] = ("all",)
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trained:
    """The trainable weights of a model.

    Args:
        adapters: LoRA adapters that train in place of the model's own weights, or None.
        everything: whether all weights train (without ``adapters``).
        in_float32: whether trainable weights are float32, as under mixed precision, or have the model's dtype.
    """

    adapters: Adapters | None = None
    everything: bool = False
    in_float32: bool = True


NOTHING_TRAINS = Trained()


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of a model's weights.

    Args:
        parameters: number of weights, without adapters.
        frozen: bytes of frozen weights.
        trained: bytes of trainable weights, including adapters.
        trainable: number of trainable weights.
        largest_product: bytes of the largest quantized matrix after dequantization for a product; 0 without
            quantization.
        largest_layer: bytes of the largest layer's weights, which an engine that shards them gathers at a time.
    """

    parameters: int
    frozen: float
    trained: float
    trainable: int
    largest_product: int
    largest_layer: float

    @property
    def total(self) -> float:
        """Bytes of all weights."""
        return self.frozen + self.trained


@contextlib.contextmanager
def without_data(model: nn.Module | None = None) -> Iterator[None]:
    """Create tensors with shapes, dtypes and a device but no data in this context.

    Args:
        model: the only model that runs in this context, or None for any. One without matrices of several experts needs
            no mode for their product, through which every operation would pass.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    has_experts = model is None or any(weight.dim() == 3 for weight in model.parameters())
    products: Any = _GroupedProducts() if has_experts else contextlib.nullcontext()
    with FakeTensorMode(allow_non_fake_inputs=True), products:
        yield


class _GroupedProducts(TorchDispatchMode):
    """Gives the experts' product its shape in float32, too, in which torch computes it but has no shape for it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        product = getattr(torch.ops.aten, "_grouped_mm", None)  # new in torch 2.8
        if product is None or func is not product.default or args[0].dtype is torch.bfloat16:
            return func(*args, **(kwargs or {}))
        left, right, *others = args
        return func(left.bfloat16(), right.bfloat16(), *others, **(kwargs or {})).to(left.dtype)


def on_cpu_without_data(model: Any) -> Any:
    """Replace the tensors of a shaped model by fake CPU tensors; call it under ``without_data``."""
    parameters: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                if id(weight) not in parameters:
                    fake = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), weight.requires_grad)
                    parameters[id(weight)] = parameters[id(fake)] = fake
                module._parameters[name] = parameters[id(weight)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return model


def shaped_model(config: Any, dtype: torch.dtype) -> Any:
    """Build a model from a configuration on the meta device.

    Args:
        config: a transformers configuration, which is not changed.
        dtype: dtype of the weights.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    config = copy.deepcopy(config)
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype)
    finally:
        transformers_logging.set_verbosity(before)


def linear_layers(model: Any) -> dict[str, nn.Module]:
    """Return the layers that quantization packs and ``lora_target: all`` adapts: all linear ones except the head."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if ("Linear" in type(module).__name__ or type(module).__name__ == "Conv1D") and module is not head
    }


def model_with(config: Any, dtype: torch.dtype, trained: Trained) -> Any:
    """Build a model from a configuration on the meta device, with its adapters; trainable weights require gradients.

    Args:
        config: a transformers configuration, which is not changed.
        dtype: dtype of the model's own weights.
        trained: the trainable weights.
    """
    model = shaped_model(config, dtype)
    if trained.adapters is not None:
        model = _with_adapters(model, trained.adapters)
    else:
        model.requires_grad_(trained.everything)
    return _trained_in(torch.float32 if trained.in_float32 else dtype, model)


def _with_adapters(model: Any, adapters: Adapters) -> Any:
    from peft import LoraConfig, get_peft_model

    names = {name.rsplit(".", 1)[-1] for name in linear_layers(model)}
    targets = sorted(names) if adapters.targets == ("all",) else list(adapters.targets)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=adapters.rank, target_modules=targets, modules_to_save=list(adapters.also) or None
    )
    with warnings.catch_warnings(), torch.device("meta"), _without_bitsandbytes():
        warnings.simplefilter("ignore")  # PEFT warns of adapters on tied weights: no weights are trained here
        return get_peft_model(model, config)


@contextlib.contextmanager
def _without_bitsandbytes() -> Iterator[None]:
    """Prevent PEFT from importing bitsandbytes, which takes seconds, for adapters on layers that are not quantized."""
    from peft.tuners.lora import model

    names = ("is_bnb_available", "is_bnb_4bit_available")
    before = {name: getattr(model, name) for name in names}
    for name in names:
        setattr(model, name, lambda: False)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(model, name, function)


def _trained_in(dtype: torch.dtype, model: Any) -> Any:
    """Replace the trainable weights by ones of a dtype; tied weights stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight.requires_grad:
                wide = made.setdefault(id(weight), nn.Parameter(torch.empty_like(weight, dtype=dtype)))
                module._parameters[name] = wide
                made[id(wide)] = wide
    return model


def weight_bytes(model: Any, *, quantization_bit: int | None = None, double_quantization: bool = True) -> WeightBytes:
    """Count the weights of a shaped model; tied weights count once.

    Args:
        model: from ``model_with``.
        quantization_bit: 4 (bitsandbytes' NF4), 8 (its LLM.int8()) or another number of bits for the linear layers
            except the head; None for no quantization.
        double_quantization: whether the 4-bit scales are quantized.

    Returns:
        Bytes, with quantized weights packed as in bitsandbytes.
    """
    bits = quantization_bit or 16
    known = {4: NF4_DOUBLE_BYTES if double_quantization else NF4_BYTES, 8: 1.0}
    per_weight = known.get(bits, bits / 8 + 4 / NF4_BLOCK)
    packed = set()
    if quantization_bit is not None:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        # An adapted layer has its own linear layer as `base_layer`; the adapter's matrices are not quantized.
        packed = {
            id(module.weight)
            for name, module in linear_layers(base).items()
            if not any(part in name for part in (".lora_", "modules_to_save"))
        }
    own = frozen = trained = 0.0
    trainable = parameters = largest = 0
    by_layer: dict[str, float] = {}
    for name, weight in model.named_parameters():
        size = weight.numel() * (per_weight if id(weight) in packed else weight.element_size())
        if id(weight) in packed:
            largest = max(largest, weight.numel() * 2)
        if weight.requires_grad:
            trainable, trained = trainable + weight.numel(), trained + size
        else:
            frozen += size
        if ".lora_" not in name:
            parameters, own = parameters + weight.numel(), own + size
        layer = _layer_of(name)
        by_layer[layer] = by_layer.get(layer, 0.0) + size
    return WeightBytes(parameters, frozen, trained, trainable, largest, max(by_layer.values(), default=own))


def _layer_of(name: str) -> str:
    parts: Sequence[str] = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else name
