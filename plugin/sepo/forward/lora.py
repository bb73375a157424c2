"""LoRA layers in fewer passes: ``x W^T + s (x A^T) B^T`` with the low-rank part added inside the matrix product.

PEFT computes the two products, casts ``x`` for them, scales and adds: five more passes over tensors of the layer's
width, a large part of a step with a frozen base. Here the same sum is computed and rounded once; layers that do more
than this (DoRA, dropout, several active adapters, sharded weights) keep their own forward.

Source: LoRA (arXiv 2106.09685), section 4.1. Shapes: x [..., in], W [out, in], A = ``down`` [r, in], B = ``up``
[out, r]; s is PEFT's ``scaling``. Results have the dtype in which the layer's own product runs; a gradient has the
dtype of its tensor.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sepo.forward.chunked import matmul_dtype
from sepo.forward.kept_results import kept_or_computed


def fuse_lora(model: nn.Module) -> int:
    """Replace the forward of PEFT's LoRA layers by the one of this module, until ``unfuse_lora``.

    Args:
        model: any model; layers with a forward set on the instance (for example by accelerate) are not changed.

    Returns:
        The number of layers with the fused forward.
    """
    layers = [module for module in model.modules() if _is_lora_linear(module)]
    for layer in layers:
        if "forward" not in layer.__dict__:
            layer.forward = MethodType(_forward, layer)  # a method, so that a copy of the layer is bound to the copy
    return sum(_is_fused(layer) for layer in layers)


def unfuse_lora(model: nn.Module) -> None:
    """Restore the original forward of PEFT's LoRA layers."""
    for module in model.modules():
        if _is_fused(module):
            del module.__dict__["forward"]


def _is_fused(module: nn.Module) -> bool:
    return getattr(module.__dict__.get("forward"), "__func__", None) is _forward


def _is_lora_linear(module: nn.Module) -> bool:
    # By name: quantized layers are in modules that can only be imported if their library is installed.
    kind = type(module)
    return kind.__module__.startswith("peft.tuners.lora.") and kind.__name__ in ("Linear", "Linear4bit", "Linear8bitLt")


class _LowRank(NamedTuple):
    down: Tensor
    up: Tensor
    scaling: float


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The forward that replaces a LoRA layer's own."""
    low_rank = None if args or kwargs else _low_rank(layer, x)
    if low_rank is None:
        output: Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return output
    return _adapted_by(low_rank, layer.base_layer, x)


def _low_rank(layer: Any, x: Tensor) -> _LowRank | None:
    """Return the single adapter that a layer adds to its base, or None if it does anything else."""
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
    # Without autocast PEFT computes in the precision of the adapter.
    if not torch.is_autocast_enabled(x.device.type) and down.weight.dtype != x.dtype:
        return None
    return _LowRank(down.weight, up.weight, float(layer.scaling[name]))


def _is_simple(linear: Any) -> bool:
    """Return whether a module only applies ``weight`` and ``bias``, which are not sharded."""
    return (
        type(linear) is nn.Linear
        and "forward" not in linear.__dict__
        and not (linear._forward_hooks or linear._forward_pre_hooks or linear._backward_hooks)
        and not any(hasattr(linear.weight, mark) for mark in ("ds_id", "to_local"))
    )


def _is_frozen_linear(base: Any) -> bool:
    return _is_simple(base) and not any(parameter.requires_grad for parameter in base.parameters())


class _Link:
    """Carrier of the gradient of an adapted layer's output, from ``_Linear`` or ``_Added`` to ``_Reduced``."""

    grad: Tensor | None = None


def _adapted_by(low_rank: _LowRank, base: Any, x: Tensor) -> Tensor:
    """Compute ``base(x) + s (x A^T) B^T``, with the base's own product last.

    Tensors for the backward pass are saved before that product: if a layer is recomputed for its backward pass and this
    product is its last, non-reentrant checkpointing stops before it.
    """
    link, frozen = _Link(), _is_frozen_linear(base)
    reduced: Tensor = _Reduced.apply(x, *low_rank, frozen, link)
    if frozen:
        output: Tensor = _Linear.apply(x, reduced, base.weight, base.bias, *low_rank, link)
    else:
        output = _Added.apply(base(x), reduced, low_rank.up, low_rank.scaling, link)
    return output


class _Reduced(torch.autograd.Function):
    """``x A^T``. Its backward pass runs after that of the layer's output, and computes the gradients of A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor, scaling: float, x_done: bool, link: _Link) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(matmul_dtype(x))
        with torch.autocast(x.device.type, enabled=False):
            reduced = rows @ down.to(rows.dtype).T
        ctx.save_for_backward(x, down, up, reduced)
        ctx.scaling, ctx.x_done, ctx.link = scaling, x_done, link
        return reduced

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, down, up, reduced = ctx.saved_tensors
        rows, ctx.link.grad = ctx.link.grad, None
        grad_down = (slope.T @ x.reshape(-1, x.shape[-1]).to(slope.dtype)).to(down.dtype)
        # Kernels run [r, N] x [N, out] at three times the rate of [out, N] x [N, r].
        grad_up = ((reduced.to(rows.dtype) * ctx.scaling).T @ rows).T.to(up.dtype).contiguous()
        grad_x = None
        if ctx.needs_input_grad[0] and not ctx.x_done:
            grad_x = (slope @ down.to(slope.dtype)).view(x.shape).to(x.dtype)
        return grad_x, grad_down, grad_up, None, None, None


class _Linear(torch.autograd.Function):
    """``x W^T + b + s reduced B^T`` with frozen W and b; saves no activation."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, reduced: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor,
        scaling: float, link: _Link,
    ) -> Tensor:  # fmt: skip

        def product() -> tuple[Tensor]:
            rows = x.reshape(-1, x.shape[-1]).to(reduced.dtype)
            with torch.autocast(x.device.type, enabled=False):
                output = F.linear(rows, weight.to(rows.dtype), None if bias is None else bias.to(rows.dtype))
                output.addmm_(reduced, up.to(rows.dtype).T, alpha=scaling)
            return (output,)

        (output,) = kept_or_computed(id(weight), 2.0 * x.numel() * weight.shape[0], product)
        # Parameters, which exist anyway: kept as attributes, not by `save_for_backward`.
        ctx.parameters, ctx.scaling, ctx.link = (weight, down, up), scaling, link
        ctx.of_x = (x.shape, x.dtype)
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, down, up = ctx.parameters
        rows = grad.reshape(-1, grad.shape[-1])
        ctx.link.grad = rows
        slope = (rows @ up.to(rows.dtype)) * ctx.scaling
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = rows @ weight.to(rows.dtype)
            grad_x.addmm_(slope, down.to(rows.dtype))
            shape, dtype = ctx.of_x
            grad_x = grad_x.view(shape).to(dtype)
        return grad_x, slope, None, None, None, None, None, None


class _Added(torch.autograd.Function):
    """``base + s reduced B^T`` for a base layer that is more than a frozen matrix (quantized, trained)."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, reduced: Tensor, up: Tensor, scaling: float, link: _Link) -> Tensor:
        with torch.autocast(base.device.type, enabled=False):
            output = torch.addmm(
                base.reshape(-1, base.shape[-1]), reduced.to(base.dtype), up.to(base.dtype).T, alpha=scaling
            )
        ctx.up, ctx.scaling, ctx.link = up, scaling, link
        return output.view(base.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows = grad.reshape(-1, grad.shape[-1])
        ctx.link.grad = rows
        return grad, (rows @ ctx.up.to(rows.dtype)) * ctx.scaling, None, None, None
