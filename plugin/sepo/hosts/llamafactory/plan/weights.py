"""Bytes of a model's weights, from its configuration alone."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

import torch

from sepo.hosts.llamafactory.plan.recipe import HowLoaded, model_config
from sepo.memory.shapes import NOTHING_TRAINS, Trained, WeightBytes, model_with, weight_bytes
from sepo.recipe.model_specs import ModelSpec


@dataclass(frozen=True)
class ModelWeights:
    """A model's configuration and the bytes of its weights.

    Args:
        config: the transformers configuration.
        dtype: dtype of the frozen weights.
        counted: the bytes.
    """

    config: Any
    dtype: torch.dtype
    counted: WeightBytes


def model_weights(how: HowLoaded, spec: ModelSpec, *, key: str, trained: Trained = NOTHING_TRAINS) -> ModelWeights:
    """Return the weights of a model.

    Args:
        how: how it is loaded.
        spec: the model.
        key: the recipe key that names it, for messages.
        trained: its trainable weights.

    Raises:
        SepoError: its configuration cannot be read.
    """
    config = model_config(spec, key=key, access=how.access)
    dtype = how.dtype or own_dtype(config, on_cpu=how.on_cpu)
    bits = _packed_bits(config) or spec.quantization_bit
    words = config.to_json_string(use_diff=False)
    counted = _counted(words, config.__class__, dtype, trained, bits, how.double_quantization)
    return ModelWeights(config, dtype, counted)


@functools.lru_cache(maxsize=64)
def _counted(
    config: str, kind: Any, dtype: torch.dtype, trained: Trained, bits: int | None, double: bool
) -> WeightBytes:
    return weight_bytes(_shaped(config, kind, dtype, trained), quantization_bit=bits, double_quantization=double)


@functools.lru_cache(maxsize=8)
def _shaped(config: str, kind: Any, dtype: torch.dtype, trained: Trained) -> Any:
    """Return a model without data, which nothing may change: recipes that differ in quantization share it."""
    return model_with(kind.from_dict(json.loads(config)), dtype, trained)


def _packed_bits(config: Any) -> int | None:
    """Return the bits per weight of a checkpoint that is quantized, or None."""
    given: Any = getattr(config, "quantization_config", None)
    values = given if isinstance(given, dict) else given.to_dict() if hasattr(given, "to_dict") else {}
    if values.get("load_in_4bit") or values.get("load_in_8bit"):
        return 4 if values.get("load_in_4bit") else 8
    return int(values["bits"]) if values.get("bits") else None


def own_dtype(config: Any, *, on_cpu: bool) -> torch.dtype:
    """Return the dtype of a model that is loaded in its own; float32 on a CPU."""
    own = getattr(config, "dtype", None) or torch.float32
    own = getattr(torch, own) if isinstance(own, str) else own
    return torch.float32 if on_cpu else own
