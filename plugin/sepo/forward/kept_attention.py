"""Attention on a CPU whose result a checkpointed layer can keep, so that it is not computed again.

Torch's own function saves what its backward pass reads in a way that cannot be handed to a recomputation. Here the same
kernels are called, for the same values and gradients.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sepo.forward.kept_results import kept_or_computed

_FLASH = 1
"""The flash kernel in the numbering of torch's ``SDPBackend``."""
_SLOWER = 2.5
"""Time of attention by that of a matrix product with as much arithmetic."""

_kernels = torch.ops.aten


def cpu_attention(
    q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor | None, dropout_p: float, is_causal: bool,
    scale: float | None, enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """Compute ``F.scaled_dot_product_attention`` on a CPU; with the flash kernel, its result can be kept.

    Args:
        q: [1, heads, n, D].
        k: [1, key-value heads, m, D].
        v: [1, key-value heads, m, D'].
        attn_mask: bool [n, m], True where a query attends to a key, or None.
        dropout_p: 0; a dropout draws random numbers, which a recomputation must draw again.
        is_causal: as for torch's function.
        scale: as for torch's function.
        enable_gqa: as for torch's function.
    """
    if torch.is_autocast_enabled("cpu") and q.dtype != torch.float64:
        dtype = torch.get_autocast_dtype("cpu")
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    settings: dict[str, Any] = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    if torch._fused_sdp_choice(q, k, v, attn_mask, dropout_p, **settings) != _FLASH:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout_p, **settings)
    output: Tensor = _Flash.apply(q, k, v, attn_mask, is_causal, scale)
    return output


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None
    ) -> Tensor:
        def attend() -> tuple[Tensor, ...]:
            return _kernels._scaled_dot_product_flash_attention_for_cpu(
                q, k, v, 0.0, causal, attn_mask=_added(mask, q), scale=scale
            )

        flops = 4.0 * q.numel() * k.shape[2] * (0.5 if causal else 1.0)
        output, log_sums = kept_or_computed("attention", _SLOWER * flops, attend)
        ctx.save_for_backward(q, k, v, output, log_sums)
        ctx.mask, ctx.causal, ctx.scale = mask, causal, scale  # the mask is one that all layers share
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, output, log_sums = ctx.saved_tensors
        grads = _kernels._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, output, log_sums, 0.0, ctx.causal, attn_mask=_added(ctx.mask, q), scale=ctx.scale
        )
        return *grads, None, None, None


def _added(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Return the mask as numbers to add to scores: 0 or -inf."""
    return None if mask is None else torch.zeros_like(mask, dtype=like.dtype).masked_fill_(~mask, -torch.inf)
