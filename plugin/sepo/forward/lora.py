"""LoRA layers in fewer passes: ``x W^T + s (x A^T) B^T`` with the low-rank part added inside the matrix product.

PEFT computes the two products, casts ``x`` for them, scales and adds: five more passes over tensors of the layer's
width, a good part of a step where the base is frozen. The same sum here, rounded once; layers that do more than this
(DoRA, dropout, several adapters at once, sharded weights) keep their own forward.

Source: LoRA (arXiv 2106.09685), section 4.1. Shapes: x [..., in], W [out, in], A = ``down`` [r, in], B = ``up``
[out, r]; s is PEFT's ``scaling``. Results have the dtype in which the layer's own product runs; a gradient has that of
what it is of.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sepo.forward.chunked import matmul_dtype


def fuse_lora(model: nn.Module) -> int:
    """Give PEFT's LoRA layers the forward of this module, until ``unfuse_lora``.

    Args:
        model: any model; layers that have a forward of their own (moved by accelerate, say) are left alone.

    Returns:
        How many layers have it now.
    """
    layers = [module for module in model.modules() if _is_lora_linear(module)]
    for layer in layers:
        if "forward" not in layer.__dict__:
            layer.forward = MethodType(_forward, layer)  # a method, so that a copied layer's is its own
    return sum(_is_fused(layer) for layer in layers)


def unfuse_lora(model: nn.Module) -> None:
    """Give PEFT's LoRA layers their own forward back."""
    for module in model.modules():
        if _is_fused(module):
            del module.__dict__["forward"]


def _is_fused(module: nn.Module) -> bool:
    return getattr(module.__dict__.get("forward"), "__func__", None) is _forward


def _is_lora_linear(module: nn.Module) -> bool:
    # By name: quantized ones are in modules that import only where their library does.
    kind = type(module)
    return kind.__module__.startswith("peft.tuners.lora.") and kind.__name__ in ("Linear", "Linear4bit", "Linear8bitLt")


class _LowRank(NamedTuple):
    down: Tensor
    up: Tensor
    scaling: float


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """In place of a LoRA layer's own forward."""
    low_rank = None if args or kwargs else _low_rank(layer, x)
    if low_rank is None:
        output: Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return output
    base = layer.base_layer
    if _is_frozen_linear(base):
        return _linear_with_low_rank(x, base.weight, base.bias, *low_rank)
    added: Tensor = _AddLowRank.apply(base(x), x, *low_rank)
    return added


def _low_rank(layer: Any, x: Tensor) -> _LowRank | None:
    """The one adapter that a layer adds to its base, or None where it does something else or more."""
    if layer.disable_adapters or layer.merged or torch.compiler.is_compiling():
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1 or active[0] in layer.lora_variant:
        return None
    (name,) = active
    down, up, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    if not (_is_simple(down) and _is_simple(up)) or down.bias is not None or up.bias is not None:
        return None
    if dropout.training and getattr(dropout, "p", 0.0):
        return None
    # Without autocast PEFT computes in the adapter's own precision.
    if not torch.is_autocast_enabled(x.device.type) and down.weight.dtype != x.dtype:
        return None
    return _LowRank(down.weight, up.weight, float(layer.scaling[name]))


def _is_simple(linear: Any) -> bool:
    """Whether a module is ``weight`` and ``bias`` and nothing else, and they are here."""
    return (
        type(linear) is nn.Linear
        and "forward" not in linear.__dict__
        and not (linear._forward_hooks or linear._forward_pre_hooks or linear._backward_hooks)
        and not any(hasattr(linear.weight, mark) for mark in ("ds_id", "to_local"))
    )


def _is_frozen_linear(base: Any) -> bool:
    return _is_simple(base) and not any(parameter.requires_grad for parameter in base.parameters())


def _linear_with_low_rank(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
) -> Tensor:
    output: Tensor = _LinearWithLowRank.apply(x, weight, bias, down, up, scaling)
    return output


class _LinearWithLowRank(torch.autograd.Function):
    """``x W^T + b + s (x A^T) B^T`` with frozen W and b."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
    ) -> Tensor:
        dtype = matmul_dtype(x)
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            output = F.linear(rows, weight.to(dtype), None if bias is None else bias.to(dtype))
            reduced = rows @ down.to(dtype).T
            output.addmm_(reduced, up.to(dtype).T, alpha=scaling)
        ctx.save_for_backward(x, weight, down, up, reduced)
        ctx.scaling = scaling
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, reduced = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        slope, grad_down, grad_up = _low_rank_gradients(ctx, rows, x, up, reduced)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = rows @ weight.to(rows.dtype)
            grad_x.addmm_(slope, down.to(rows.dtype))
            grad_x = grad_x.view(x.shape).to(x.dtype)
        return grad_x, None, None, grad_down.to(down.dtype), grad_up.to(up.dtype), None


class _AddLowRank(torch.autograd.Function):
    """``base + s (x A^T) B^T`` where the base layer is more than a frozen matrix (quantized, trained)."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, x: Tensor, down: Tensor, up: Tensor, scaling: float) -> Tensor:
        dtype = base.dtype
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            reduced = rows @ down.to(dtype).T
            output = torch.addmm(base.reshape(-1, base.shape[-1]), reduced, up.to(dtype).T, alpha=scaling)
        ctx.save_for_backward(x, down, up, reduced)
        ctx.scaling = scaling
        return output.view(base.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, down, up, reduced = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        slope, grad_down, grad_up = _low_rank_gradients(ctx, rows, x, up, reduced)
        grad_x = (slope @ down.to(rows.dtype)).view(x.shape).to(x.dtype) if ctx.needs_input_grad[1] else None
        return grad, grad_x, grad_down.to(down.dtype), grad_up.to(up.dtype), None


def _low_rank_gradients(ctx: Any, rows: Tensor, x: Tensor, up: Tensor, reduced: Tensor) -> tuple[Tensor, ...]:
    """Gradients of ``x A^T`` [N, r], of A [r, in] and of B [out, r], from that of the output, ``rows`` [N, out]."""
    scaled = reduced * ctx.scaling
    slope = (rows @ up.to(rows.dtype)) * ctx.scaling
    return slope, slope.T @ x.reshape(-1, x.shape[-1]).to(rows.dtype), rows.T @ scaled
