"""Attention over a row of pairs, in two causal pieces per pair: prompt + chosen, and rejected after prompt.

With a dense mask over the row, kernels could not skip positions that no token attends to. Here the first piece is
plainly causal and the second one rectangular. Sliding windows are masked by position, so they are exact too. The
attention is registered with transformers under a new name; a call without a layout (other evaluation code, generation)
is forwarded to the model's original implementation.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

from sepo.errors import SepoError
from sepo.forward.shared_prompt import LAYOUT, PairLayout

PREFIX = "sepo_"
"""Prefix of the registered names: ``sepo_sdpa`` replaces ``sdpa``."""

FLASH = ("flash_attention_2", "flash_attention_3")
SUPPORTED = ("sdpa", "eager", *FLASH)
"""Implementations of transformers that have a counterpart here; flash kernels are used through torch's SDPA."""

# Arguments that layers pass to their attention, and that attention does not read.
_NOT_READ = frozenset(
    {"position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states", "is_causal",
     "output_router_logits", "position_embeddings", "past_key_values", "return_dict", "num_items_in_batch",
     "user_cache"}
)  # fmt: skip


class UnknownAttentionError(SepoError):
    """Raised if a layer passes an argument to its attention that is not supported here."""


def register(implementation: str) -> str:
    """Register the attention over pairs that replaces ``implementation`` with transformers.

    Args:
        implementation: one of ``SUPPORTED``.

    Returns:
        The name for a config's ``_attn_implementation``.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = PREFIX + implementation
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _attention_for(implementation))
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[implementation])
    return name


def _attention_for(implementation: str) -> Callable[..., Any]:
    piece = functools.partial(_eager_piece if implementation == "eager" else _fused_piece, implementation)

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, layout: PairLayout, **kwargs: Any
    ) -> Tensor:
        layout.attended += 1
        return attend_pairs(module, query, key, value, layout, piece=piece, **kwargs)

    # Lengths differ from row to row: this part stays uncompiled in a compiled model, or it would recompile every row.
    attend = torch.compiler.disable(attend)

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        layout: PairLayout | None = kwargs.pop(LAYOUT, None)
        if layout is None:
            output: tuple[Tensor, Any] = _host_attention(implementation, module)(
                module, query, key, value, attention_mask, **kwargs
            )
            return output
        return attend(module, query, key, value, layout, **kwargs), None

    return attention


def _host_attention(implementation: str, module: nn.Module) -> Callable[..., Any]:
    """Return the function that transformers calls for a layer; each model's module defines its own eager one."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    eager = vars(sys.modules[type(module).__module__]).get("eager_attention_forward")
    # a mapping in every version; its own `get_interface` is new in transformers 5
    return ALL_ATTENTION_FUNCTIONS.get(implementation, eager)


def attend_pairs(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PairLayout,
    *,
    piece: Callable[..., Tensor],
    sliding_window: int | None = None,
    **kwargs: Any,
) -> Tensor:
    """Compute the attention of each pair in a row over its own tokens.

    Args:
        module: the attention layer.
        query: [1, heads, N, D], after the rotary embedding.
        key: [1, key-value heads, N, D].
        value: [1, key-value heads, N, D'].
        layout: the row.
        piece: computes the attention of one piece, [1, n, heads, D'].
        sliding_window: number of tokens that a token attends to, including itself; None for all.
        **kwargs: other arguments that the layer passes to its attention.

    Returns:
        [1, N, heads, D'].
    """

    def attend(queries: slice, before: slice | None = None) -> Tensor:
        """Compute the attention of a run of tokens over an earlier run and itself."""
        own = queries.stop - queries.start
        earlier = before.stop - before.start if before is not None else 0
        keys, values = (
            torch.cat([states[:, :, before], states[:, :, queries]], 2) if earlier else states[:, :, queries]
            for states in (key, value)
        )
        windowed = sliding_window is not None and sliding_window < earlier + own
        mask = _mask(layout, earlier, own, sliding_window if windowed else None, query.device)
        output: Tensor = piece(module, query[:, :, queries], keys, values, mask=mask, windowed=windowed, **kwargs)
        return output

    outputs = []
    for span in layout.spans:
        if span.split > span.start:
            outputs.append(attend(slice(span.start, span.split)))
        if span.rejected:
            outputs.append(attend(slice(span.split, span.end), slice(span.start, span.start + span.shared)))
    return torch.cat(outputs, 1)


def _mask(layout: PairLayout, before: int, length: int, window: int | None, device: torch.device) -> Tensor | None:
    """Return the mask of ``length`` tokens over ``before`` earlier tokens and themselves, [length, before + length].

    The mask is bool, True where a token attends; None if a plain causal mask is sufficient.
    """
    if window is None and not before:
        return None
    total = before + length
    key = (before, length, window, device)
    if key not in layout.masks:
        reach = torch.arange(before, total, device=device)[:, None] - torch.arange(total, device=device)
        layout.masks[key] = reach >= 0 if window is None else (reach >= 0) & (reach < window)
    return layout.masks[key]


def _fused_piece(
    implementation: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    windowed: bool,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> Tensor:
    """Compute fused attention of one piece; the mask is causal if ``mask`` is None."""
    unknown = [name for name, value in kwargs.items() if value is not None and name not in _NOT_READ]
    if softcap is not None and implementation in FLASH:  # transformers' sdpa ignores softcap; so does this one for sdpa
        unknown.append("softcap")
    if unknown:
        raise UnknownAttentionError(
            f"{type(module).__name__} passes {', '.join(unknown)} to its attention, which is not supported"
        )
    groups, cpu = query.shape[1] // key.shape[1], query.device.type == "cpu"
    if mask is not None and not windowed and query.device.type == "cuda":
        mask = causal_lower_right(*mask.shape)  # the same mask, in the form that flash kernels support
    if groups > 1 and not cpu:  # on other devices, kernels that support a mask do not support groups
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    output = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling,
        enable_gqa=groups > 1 and cpu,
    )  # fmt: skip
    return output.transpose(1, 2)


def _eager_piece(
    implementation: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    windowed: bool,
    **kwargs: Any,
) -> Tensor:
    """Compute the model's eager attention of one piece."""
    if mask is None:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    added = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
    added.masked_fill_(~mask, torch.finfo(query.dtype).min)
    output: Tensor = _host_attention(implementation, module)(module, query, key, value, added[None, None], **kwargs)[0]
    return output
