"""Support of a model for running a pair's prompt once for both responses, and the log line if it cannot."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sepo.forward.attention import PREFIX, SUPPORTED, register
from sepo.forward.head import causal_lm
from sepo.forward.shared_prompt import PairLayout, is_right_padded, pair_layout
from sepo.forward.sharing_probe import difference

logger = logging.getLogger(__name__)

_BATCH = {"input_ids", "attention_mask"}
_LAYERS = {"full_attention", "sliding_attention", "attention"}
_REFUSALS: weakref.WeakKeyDictionary[nn.Module, str | None] = weakref.WeakKeyDictionary()
"""Models that were checked: why pairs take the plain path, or None if they share their prompts."""


def batch_layout(inputs: Mapping[str, Any], wanted: Tensor, *, whole: bool = False) -> PairLayout | None:
    """Return the layout of a batch's pairs in one row, or None if the batch must run padded.

    Args:
        inputs: the model's inputs, ``input_ids`` [2B, T] with the first B rows chosen.
        wanted: bool, [2B, T - 1], shifted.
        whole: whether to keep the tokens on which no wanted one depends.
    """
    extra = set(inputs) - _BATCH
    mask = inputs.get("attention_mask")
    if extra:
        warn_once(f"the batch carries {', '.join(sorted(extra))} besides its tokens")
    elif mask is not None and mask.dim() != 2:
        warn_once("the attention mask is not a padding mask")
    else:
        # One device-to-host copy: the layout is built from lengths on the CPU.
        ones = torch.ones_like(inputs["input_ids"])
        ids, kept, needed = torch.stack(
            [inputs["input_ids"], ones if mask is None else mask.to(ones), nn.functional.pad(wanted.to(ones), (0, 1))]
        ).cpu()
        if is_right_padded(kept):
            attended = kept.bool() if whole else None
            return pair_layout(ids, needed[:, :-1].bool(), attended=attended).to(ones.device)
        warn_once("the batch is not padded on the right")
    return None


def layout_for(model: nn.Module, inputs: Mapping[str, Any], layout: PairLayout | None) -> PairLayout | None:
    """Return the layout with which a model runs a batch, or None if it runs the padded batch.

    A model is checked once: its class and config, and then both paths on a few tokens of the batch.

    Args:
        model: a causal language model, wrapped or not.
        inputs: the batch.
        layout: from ``batch_layout``.
    """
    if layout is None:
        return None
    inner: Any = causal_lm(model)
    if inner not in _REFUSALS:
        refusal = refusal_of(inner)
        if refusal is None:
            own = _use_pair_attention(inner)
            refusal = difference(model, inner, inputs["input_ids"], layout)
            if refusal is not None:
                inner.config._attn_implementation = own
        _REFUSALS[inner] = refusal
        if refusal is not None:
            warn_once(refusal)
        else:
            logger.info(
                "%s: each pair's prompt is computed once and padding not at all (first batch: %s tokens, padded %s).",
                type(inner).__name__, f"{layout.tokens:,}", f"{inputs['input_ids'].numel():,}",
            )  # fmt: skip
    return layout if _REFUSALS[inner] is None else None


_WARNED: set[str] = set()


def warn_once(reason: str) -> None:
    """Log why a run takes the plain path, once per reason."""
    if reason not in _WARNED:
        _WARNED.add(reason)
        logger.warning("prompts are computed twice, once per response, and padding is too: %s.", reason)


def refusal_of(model: nn.Module) -> str | None:
    """Return why a causal language model cannot run pairs with a shared prompt, by its class and config; or None.

    Args:
        model: the model without wrappers.
    """
    config, name = getattr(model, "config", None), type(model).__name__
    implementation = str(getattr(config, "_attn_implementation", None)).removeprefix(PREFIX)
    layers = set(getattr(config, "layer_types", None) or ())
    refusals = {
        f"{name} carries state from token to token": getattr(model, "_is_stateful", False),
        f"{name} does not take its attention from transformers' registry": not getattr(
            model, "_supports_attention_backend", False
        ),
        f"{name} has layers of the types {', '.join(sorted(layers - _LAYERS))}": bool(layers - _LAYERS),
        f"{name} is not a text-only decoder": hasattr(config, "vision_config")
        or hasattr(config, "audio_config")
        or getattr(config, "is_encoder_decoder", False),
        f"{name} upcasts its attention to float32": getattr(config, "reorder_and_upcast_attn", False),
        f"{name} attends in chunks": getattr(config, "attention_chunk_size", None) is not None,
        f"the attention '{implementation}' is not one of {', '.join(SUPPORTED)}": implementation not in SUPPORTED,
    }
    return next((reason for reason, holds in refusals.items() if holds), None)


def _use_pair_attention(model: Any) -> str:
    """Set the attention over pairs in the model's config and return the name of the previous one. It stays set, since
    checkpointed layers read the name again in the backward pass."""
    implementation: str = model.config._attn_implementation
    if not implementation.startswith(PREFIX):
        model.config._attn_implementation = register(implementation)
    return implementation
