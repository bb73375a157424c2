"""Loading of reward models, outside the training engine."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sepo.errors import SepoError, first_line
from sepo.forward.head import causal_lm
from sepo.recipe.model_specs import ModelSpec
from sepo.rewards.earlier_names import earlier_docstrings
from sepo.rewards.reward_files import KEY, RewardFiles, reward_files, reward_tokenizer
from sepo.rewards.reward_heads import ClassificationHead, ValueHead
from sepo.rewards.reward_model import RewardModelRewards
from sepo.scoring.hub import hub_access
from sepo.scoring.hub_files import VALUE_HEAD
from sepo.scoring.models import load_frozen, placed, plain_loading, quantized_loading

_SUMMARY = "v_head.summary."


def load_reward_model(
    spec: ModelSpec, *, model_args: Any, device: torch.device, batch_tokens: int
) -> RewardModelRewards:
    """Load a reward model.

    Args:
        spec: the reward model.
        model_args: the host's model arguments, which give dtype, attention implementation and hub access.
        device: device on which it runs.
        batch_tokens: padded tokens of one batch.

    Raises:
        SepoError: as ``reward_files`` and ``reward_tokenizer``, which a run calls before it loads any model; or its
            weights have no trained head.
    """
    access = hub_access(model_args)
    files = reward_files(spec, access=access)
    tokenizer = reward_tokenizer(spec, files, access=access)
    with plain_loading():
        if files.head == "value":
            weight, bias = _value_head(files.last / VALUE_HEAD)
            model = placed(load_frozen(model_args, files.spec, files.spec.adapters).eval(), device)
            head: Any = ValueHead(model, weight=weight, bias=bias)
        else:
            model = _classification_model(spec, files, model_args=model_args, device=device)
            head = ClassificationHead(placed(model.eval(), device), name=spec.model)
    return RewardModelRewards(
        head,
        tokenizer=tokenizer,
        name=f"the reward model {spec.text}",
        batch_tokens=batch_tokens,
        positions=files.positions,
    )


def _classification_model(spec: ModelSpec, files: RewardFiles, *, model_args: Any, device: torch.device) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    config, bits = files.config, files.spec.quantization_bit
    config.use_cache = False
    if files.head == "classification_adapter":
        config.num_labels = 1
    common: dict[str, Any] = {"trust_remote_code": files.remote_code}
    names = earlier_docstrings(config) if files.remote_code else contextlib.nullcontext()
    try:
        with names:
            with torch.device("meta"):
                empty = AutoModelForSequenceClassification.from_config(config, **common)
            heads = [name for name, _ in empty.named_children() if name != empty.base_model_prefix]
            quantized = {}
            if bits is not None:
                quantized = quantized_loading(bits, model_args=model_args, device=device, not_quantized=heads)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                files.spec.model,
                config=config,
                dtype=model_args.compute_dtype or "auto",
                output_loading_info=True,
                **common,
                **quantized,
            )
    except Exception as error:  # transformers and the model's own code raise many types
        raise SepoError(f"{KEY}: '{spec.model}' cannot be loaded as a reward model: {first_line(error)}") from error
    in_adapter = tuple(heads) if files.head == "classification_adapter" else ()
    missing = sorted(name for name in info["missing_keys"] if name.partition(".")[0] not in in_adapter)
    if missing:
        raise SepoError(
            f"{KEY}: the weights of '{spec.model}' lack {missing[0]}{_more(missing)}, which would be random; use a "
            "model that was saved with all of its weights."
        )
    for adapter in files.spec.adapters:
        model = PeftModel.from_pretrained(model, adapter)
        if bits is None:
            model = model.merge_and_unload()
    if not files.remote_code:
        _compute_in_float32([getattr(causal_lm(model), name) for name in heads])
    return model.requires_grad_(False)


def _compute_in_float32(heads: Sequence[nn.Module]) -> None:
    """Compute linear heads in float32: in bfloat16, a score of 10 is a multiple of 1/16, and responses would tie."""
    for module in (each for head in heads for each in head.modules()):
        if type(module) is nn.Linear and module.weight.dtype in (torch.bfloat16, torch.float16):
            module.float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _value_head(file: Path) -> tuple[Tensor, Tensor]:
    """Return weight [1, H] and bias [1] of a value head, in float32 or wider."""
    tensors = load_file(file)
    names = (f"{_SUMMARY}weight", f"{_SUMMARY}bias")
    if any(name not in tensors for name in names) or tensors[names[0]].shape[0] != 1:
        found = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items()) or "nothing"
        raise SepoError(f"{KEY}: {file} holds {found}, expected {names[0]} of one row and {names[1]}.")
    weight, bias = (tensors[name].to(torch.promote_types(tensors[name].dtype, torch.float32)) for name in names)
    return weight, bias
