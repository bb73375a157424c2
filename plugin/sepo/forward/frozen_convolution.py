"""A convolution with frozen weights whose input is not kept: torch keeps it for the gradient of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv1d_input

from sepo.forward.chunked import matmul_dtype


def lean_convolution(conv: nn.Conv1d) -> Callable[[Tensor], Tensor]:
    """Return a module's convolution: its own forward, or one that keeps no input if its weights are frozen.

    Args:
        conv: the module. Its own forward is returned if it has another one than its class, trains, or is sharded.

    Returns:
        A function of [B, D, T] with the values and gradients of the module's forward.
    """
    plain = type(conv) is nn.Conv1d and "forward" not in conv.__dict__ and conv.padding_mode == "zeros"
    weights = list(conv.parameters())
    trains = any(weight.requires_grad for weight in weights)
    sharded = any(hasattr(weight, mark) for weight in weights for mark in ("ds_id", "to_local"))
    if not plain or trains or sharded or isinstance(conv.padding, str):
        return conv.forward
    return lambda x: _Convolution.apply(x, conv)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: nn.Conv1d) -> Tensor:
        dtype = matmul_dtype(x)
        ctx.conv, ctx.shape, ctx.dtype = conv, x.shape, x.dtype
        weight, bias = conv.weight.to(dtype), None if conv.bias is None else conv.bias.to(dtype)
        return F.conv1d(x.to(dtype), weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        conv = ctx.conv
        with torch.autocast(grad.device.type, enabled=False):
            slope = conv1d_input(
                ctx.shape, conv.weight.to(grad.dtype), grad, conv.stride, conv.padding, conv.dilation, conv.groups
            )
        return slope.to(ctx.dtype), None
