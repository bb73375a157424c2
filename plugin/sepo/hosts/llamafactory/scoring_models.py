"""Loading of frozen scoring models by LLaMA-Factory. Imported for its side effect: it registers the function
and the access to the hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from llamafactory.hparams import FinetuningArguments, ModelArguments
from llamafactory.model import load_model, load_tokenizer

import sepo.hosts.llamafactory.hub  # noqa: F401
from sepo.recipe.model_specs import MAIN, ModelSpec
from sepo.scoring.models import load_frozen


@load_frozen.register(ModelArguments)
def load_with_host(model_args: ModelArguments, spec: ModelSpec, adapters: Sequence[str]) -> Any:
    """Load a scoring model as ``load_frozen`` specifies, without the settings that only concern the policy.

    With ``infer_dtype``, its parameters have that dtype: LLaMA-Factory 0.9.5 loads models in the dtype of their config
    and does not read the key.
    """
    scoring_args = ModelArguments.copyfrom(
        model_args,
        model_name_or_path=spec.model,
        model_revision=MAIN,  # of local directories: unused
        adapter_name_or_path=",".join(adapters) or None,
        adapter_folder=None,
        quantization_bit=spec.quantization_bit,
        resize_vocab=False,
        add_tokens=None,
        add_special_tokens=None,
        use_unsloth=False,
        mixture_of_depths=None,
        shift_attn=False,
    )
    tokenizer = load_tokenizer(scoring_args)["tokenizer"]
    model = load_model(tokenizer, scoring_args, FinetuningArguments(), is_trainable=False)
    if scoring_args.infer_dtype != "auto" and not getattr(model, "quantization_method", None):
        cast_parameters(model, getattr(torch, scoring_args.infer_dtype))
    return model


def cast_parameters(model: Any, dtype: torch.dtype) -> None:
    """Cast the floating-point parameters of a model in place, except those that its class keeps in float32.

    Buffers keep their dtype, as in ``from_pretrained``: rotary frequencies would lose digits.
    """
    names = ("_keep_in_fp32_modules_strict", *(["_keep_in_fp32_modules"] if dtype == torch.float16 else []))
    kept = {module for name in names for module in getattr(model, name, None) or ()}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not any(part in kept for part in name.split(".")):
            parameter.data = parameter.data.to(dtype)
