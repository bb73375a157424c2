"""Attention over a row of pairs, in two causal pieces per pair: prompt + chosen, and rejected after prompt.

A dense mask over the row would keep the kernels from skipping what no token attends to. Here the first piece is
plainly causal and the second one rectangular. Sliding windows are masked by position, so they are exact too. Registered
with transformers under a name of its own; a call without a layout (evaluation by others, generation) is passed on to
the implementation that the model had.
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
from sepo.forward.layout import LAYOUT, PairLayout

PREFIX = "sepo_"
"""A model whose attention is registered as ``sdpa`` gets ``sepo_sdpa``."""

FLASH = ("flash_attention_2", "flash_attention_3")
SUPPORTED = ("sdpa", "eager", *FLASH)
"""Implementations of transformers that have a counterpart here; flash kernels are reached through torch's own."""

# What layers hand to their attention beside the arguments named below, and attention does not read.
_NOT_READ = frozenset(
    {"position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states", "is_causal",
     "position_embeddings", "past_key_values", "return_dict", "num_items_in_batch"}
)  # fmt: skip


class UnknownAttentionError(SepoError):
    """A layer asks its attention for something that the pieces here do not do."""


def register(implementation: str) -> str:
    """Make transformers know the attention over pairs that stands in for ``implementation``.

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

    # Every row has other lengths: a compiled model calls this part as it is, or it would be compiled for each row.
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
    """The function that transformers calls for a layer; each model's file has an eager one of its own."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    eager = vars(sys.modules[type(module).__module__]).get("eager_attention_forward")
    return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)


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
    """Attention of each pair of a row over its own tokens.

    Args:
        module: the attention layer.
        query: [1, heads, N, D], rotated already.
        key: [1, key-value heads, N, D].
        value: [1, key-value heads, N, D'].
        layout: the row.
        piece: attention of one piece, [1, n, heads, D'].
        sliding_window: a token sees this many tokens, itself the last of them; None for all.
        **kwargs: what the layer passes to its attention besides.

    Returns:
        [1, N, heads, D'].
    """

    def attend(queries: slice, before: slice | None = None) -> Tensor:
        """Attention of a run of tokens over an earlier run and itself."""
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
    """What ``length`` tokens see of ``before`` earlier tokens and of themselves, bool [length, before + length].

    None where a plain causal mask says it all.
    """
    if window is None and not before:
        return None
    total = before + length
    wanted = (before, length, window, device)
    if wanted not in layout.masks:
        reach = torch.arange(before, total, device=device)[:, None] - torch.arange(total, device=device)
        layout.masks[wanted] = reach >= 0 if window is None else (reach >= 0) & (reach < window)
    return layout.masks[wanted]


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
    """Fused attention of one piece; a causal mask where ``mask`` is None."""
    unknown = [name for name, asked in kwargs.items() if asked is not None and name not in _NOT_READ]
    if softcap is not None and implementation in FLASH:  # the sdpa of transformers leaves it out, and so do we there
        unknown.append("softcap")
    if unknown:
        raise UnknownAttentionError(f"{type(module).__name__} asks its attention for {', '.join(unknown)}")
    groups, cpu = query.shape[1] // key.shape[1], query.device.type == "cpu"
    if mask is not None and not windowed and query.device.type == "cuda":
        mask = causal_lower_right(*mask.shape)  # the same mask by a name that flash kernels know
    if groups > 1 and not cpu:  # elsewhere the kernels that take a mask take no groups
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
    """The model's own eager attention of one piece."""
    if mask is None:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    added = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
    added.masked_fill_(~mask, torch.finfo(query.dtype).min)
    output: Tensor = _host_attention(implementation, module)(module, query, key, value, added[None, None], **kwargs)[0]
    return output
