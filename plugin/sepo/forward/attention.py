"""Attention over a row of pairs, in two causal pieces per pair: prompt + chosen, and rejected after prompt.

With a dense mask over the row, kernels could not skip positions that no token attends to. Here the first piece is
plainly causal and the second one rectangular. Where a kernel has no form of its own for the rectangle or for a sliding
window, the queries run in blocks, each over the keys that it reaches, under one small mask that all blocks share: no
tensor has the size [queries, keys]. The attention is registered with transformers under a new name; a call without a
layout (other evaluation code, generation) is forwarded to the model's original implementation.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

from sepo.errors import SepoError
from sepo.forward.kept_attention import cpu_attention
from sepo.forward.kept_results import may_be_kept
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
    causal = arguments.get("is_causal")
    if causal is False or (causal is None and getattr(module, "is_causal", None) is False):
        unknown.append("is_causal=False")
    # transformers' sdpa ignores softcap; so does this one for sdpa
    if arguments.get("softcap") is not None and implementation in FLASH:
        unknown.append("softcap")
    if unknown:
        raise UnknownAttentionError(
            f"{layer.__name__} passes {', '.join(unknown)} to its attention, which is not supported"
        )


@dataclass(frozen=True)
class Reach:
    """The keys that the queries of a piece attend to: each query its own token and the ones before it.

    Args:
        queries: number of queries, the last of the tokens.
        keys: number of tokens.
        window: number of tokens that a query attends to, including itself; None for all.
    """

    queries: int
    keys: int
    window: int | None = None

    def blocks(self, rows: int, *, lower_right: bool) -> Iterator[tuple[slice, slice, Reach]]:
        """Divide the queries into blocks, each over the keys that it reaches.

        Args:
            rows: maximum number of queries of a block with a dense mask.
            lower_right: whether the kernel has the mask of fewer queries than keys without a window in a form of its
                own; these queries are then not divided.

        Yields:
            The queries and the keys of a block, and its reach.
        """
        before = self.keys - self.queries
        # Queries at positions within the window attend to everything before them.
        free = self.queries if self.window is None else min(self.queries, max(0, self.window - before))
        step = self.queries if before == 0 or lower_right else rows
        starts = [*range(0, free, step), *range(free, self.queries, rows), self.queries]
        for start, stop in itertools.pairwise(starts):
            window = None if start < free else self.window
            first = 0 if window is None else before + start - window + 1
            keys = slice(first, before + stop)
            yield slice(start, stop), keys, Reach(stop - start, keys.stop - keys.start, window)


def attend_pairs(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PairLayout,
    *,
    piece: Callable[..., list[Tensor]],
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
        piece: computes the attention of one piece, in parts [1, n, heads, D'] that make up its queries in order.
        sliding_window: number of tokens that a token attends to, including itself; None for all.
        **kwargs: other arguments that the layer passes to its attention.

    Returns:
        [1, N, heads, D'].
    """

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> list[Tensor]:
        count, total = queries.shape[2], keys.shape[2]
        reach = Reach(count, total, sliding_window if sliding_window is not None and sliding_window < total else None)
        return piece(module, queries, keys, values, reach=reach, layout=layout, **kwargs)

    # Prompt + chosen, rejected, prompt + chosen, ...: the gradient of a split is one concatenation, that of a slice a
    # tensor as large as the row.
    lengths = [length for span in layout.spans for length in (span.split - span.start, span.end - span.split)]
    parts = [iter(states.split(lengths, 2)) for states in (query, key, value)]
    outputs: list[Tensor] = []
    for span in layout.spans:
        first, own = ([next(part) for part in parts] for _ in range(2))
        outputs += attend(*first)
        if span.rejected:
            keys, values = (
                torch.cat([states[:, :, : span.shared], more], 2) if span.shared else more
                for states, more in zip(first[1:], own[1:], strict=True)
            )
            outputs += attend(own[0], keys, values)
    return torch.cat(outputs, 1)


_BLOCK_ROWS = {"cpu": 256}
_DEFAULT_BLOCK_ROWS = 2048
"""Queries per block, by type of device. On a CPU, small blocks are the fastest, since keys after a block are not
computed. On accelerators each block is launched, and only memory limits a block."""


def _dense(layout: PairLayout, reach: Reach, rows: int, device: torch.device) -> Tensor:
    """Return the mask of a block, bool [queries, keys], True where a query attends to a key.

    Aligned at the last query and key, the mask of a block is a part of the mask of any larger one: one mask is made per
    layout and window.

    Args:
        layout: the row, which holds the masks.
        reach: reach of the block.
        rows: maximum number of queries of a block.
        device: device of the mask.
    """
    made = (reach.window, rows, device)
    if made not in layout.masks:
        width = max(span.shared + max(span.chosen, span.rejected) for span in layout.spans)
        rows = min(rows, width)
        if reach.window is not None:
            width = min(width, rows + reach.window - 1)
        own = torch.arange(width - rows, width, device=device)[:, None]
        keys = torch.arange(width, device=device)
        mask = keys <= own
        if reach.window is not None:
            mask &= keys > own - reach.window
        layout.masks[made] = mask
    return layout.masks[made][-reach.queries :, -reach.keys :]


def _fused_piece(
    implementation: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    reach: Reach,
    layout: PairLayout,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> list[Tensor]:
    """Compute fused attention of one piece."""
    kind = query.device.type
    groups, cpu, lower_right = query.shape[1] // key.shape[1], kind == "cpu", kind == "cuda"
    if groups > 1 and not cpu:  # on other devices, kernels that support a mask do not support groups
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    rows = _BLOCK_ROWS.get(kind, _DEFAULT_BLOCK_ROWS)
    outputs = []
    for queries, keys, block in reach.blocks(rows, lower_right=lower_right):
        q, k, v = query[:, :, queries], key[:, :, keys], value[:, :, keys]
        causal = block.window is None and block.queries == block.keys
        mask: Tensor | None = None
        if lower_right and block.window is None and not causal:
            mask = causal_lower_right(block.queries, block.keys)  # the form that flash kernels support
            if torch.is_autocast_enabled(kind):  # it is dispatched before autocast sees the call
                q, k, v = (state.to(torch.get_autocast_dtype(kind)) for state in (q, k, v))
        elif not causal:
            mask = _dense(layout, block, rows, query.device)
        keepable = cpu and not dropout and may_be_kept()
        compute: Callable[..., Tensor] = cpu_attention if keepable else F.scaled_dot_product_attention
        output = compute(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scaling, enable_gqa=groups > 1 and cpu
        )
        outputs.append(output.transpose(1, 2))
    return outputs


def _eager_piece(
    implementation: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    reach: Reach,
    layout: PairLayout,
    **kwargs: Any,
) -> list[Tensor]:
    """Compute the model's eager attention of one piece."""
    mask = _dense(layout, reach, layout.tokens, query.device)
    added = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
    added.masked_fill_(~mask, torch.finfo(query.dtype).min)
    attention = _host_attention(implementation, type(module))
    output: Tensor = attention(module, query, key, value, added[None, None], **kwargs)[0]
    return [output]
