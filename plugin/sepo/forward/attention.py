"""Attention over a row of pairs, in two causal pieces per pair: prompt + chosen, and rejected after prompt.

With a dense mask over the row, kernels could not skip positions that no token attends to. Here the first piece is
plainly causal and the second one rectangular. Sliding windows are masked by position, so they are exact too. The
attention is registered with transformers under a new name; a call without a layout (other evaluation code, generation)
is forwarded to the model's original implementation.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

from sepo.errors import SepoError
from sepo.forward.read_arguments import read_arguments
from sepo.forward.shared_prompt import LAYOUT, PairLayout

PREFIX = "sepo_"
"""Prefix of the registered names: ``sepo_sdpa`` replaces ``sdpa``."""

FLASH = ("flash_attention_2", "flash_attention_3")
SUPPORTED = ("sdpa", "eager", *FLASH)
"""Implementations of transformers that have a counterpart here; flash kernels are used through torch's SDPA."""

_COMPUTED = frozenset({"dropout", "scaling", "sliding_window", "softcap"})
"""Arguments that the attention here computes as the host's does."""

_REPLACED = frozenset({"position_ids", "is_causal", "output_attentions"})
"""Arguments that the host's functions read, and that the layout replaces; weights are not returned."""


class UnknownAttentionError(SepoError):
    """Raised if a layer's attention is not the one over the pairs of a row that is computed here."""


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
        _check_arguments(implementation, module, kwargs)
        layout.attended += 1
        return attend_pairs(module, query, key, value, layout, piece=piece, **kwargs)

    # Lengths differ from row to row: this part stays uncompiled in a compiled model, or it would recompile every row.
    attend = torch.compiler.disable(attend)

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        layout: PairLayout | None = kwargs.pop(LAYOUT, None)
        if layout is None:
            output: tuple[Tensor, Any] = _host_attention(implementation, type(module))(
                module, query, key, value, attention_mask, **kwargs
            )
            return output
        if attention_mask is not None and attention_mask.numel() != 1:
            raise UnknownAttentionError(f"{type(module).__name__} changes its attention mask, which is not supported")
        return attend(module, query, key, value, layout, **kwargs), None

    return attention


def _host_attention(implementation: str, layer: type[nn.Module]) -> Callable[..., Any]:
    """Return the function that transformers calls for a class of layers; eager attention is the model's own.

    Raises:
        UnknownAttentionError: if there is none.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    # a mapping in every version; its own `get_interface` is new in transformers 5
    function: Callable[..., Any] | None = ALL_ATTENTION_FUNCTIONS.get(implementation, _eager_attention(layer))
    if function is None:
        raise UnknownAttentionError(f"the module of {layer.__name__} has no eager_attention_forward")
    return function


def _eager_attention(layer: type[nn.Module]) -> Callable[..., Any] | None:
    """Return the eager attention of a class of layers, which each model's module defines; None if it has none."""
    modules = (sys.modules.get(base.__module__) for base in layer.__mro__)
    own = (getattr(module, "eager_attention_forward", None) for module in modules)
    return next((function for function in own if function is not None), None)


def _check_arguments(implementation: str, module: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Raise if a layer passes an argument to its attention that is read by the model's own eager attention, or by the
    host's function for the implementation, and not here."""
    layer = type(module)
    functions = (_host_attention(implementation, layer), _eager_attention(layer))
    reads = [read_arguments(function) for function in functions if function is not None]
    unknown = [
        name
        for name, value in arguments.items()
        if value is not None
        and name not in _COMPUTED | _REPLACED
        and any(names is None or name in names for names in reads)
    ]
    if arguments.get("is_causal") is False:
        unknown.append("is_causal=False")
    # transformers' sdpa ignores softcap; so does this one for sdpa
    if arguments.get("softcap") is not None and implementation in FLASH:
        unknown.append("softcap")
    if unknown:
        raise UnknownAttentionError(
            f"{layer.__name__} passes {', '.join(unknown)} to its attention, which is not supported"
        )


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
    **kwargs: Any,
) -> Tensor:
    """Compute fused attention of one piece; the mask is causal if ``mask`` is None."""
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
    attention = _host_attention(implementation, type(module))
    output: Tensor = attention(module, query, key, value, added[None, None], **kwargs)[0]
    return output
