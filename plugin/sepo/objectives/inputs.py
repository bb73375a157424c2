"""Checks of input tensors that all steps of a loss share: presence, shape and dtype."""

from __future__ import annotations

from torch import Tensor

from sepo.errors import SepoError
from sepo.objectives.method import Method


def given(method: Method, name: str, tensor: Tensor | None, *, like: Tensor) -> Tensor:
    """Return a needed tensor; raise if it is missing, not floating-point or not of the shape of ``like``."""
    tensor = present(method, name, tensor)
    same_shape(name, tensor, "its response's mask", like)
    if not tensor.is_floating_point():
        raise SepoError(f"{name} has dtype {tensor.dtype}, expected a floating dtype: pass {name}.float().")
    return tensor


def present(method: Method, name: str, tensor: Tensor | None, *, shape: str = "[B, T]") -> Tensor:
    """Return a needed tensor; raise if it is missing."""
    if tensor is None:
        raise SepoError(f"{name} is missing, objective '{method.name}' needs it: pass {name}={shape}.")
    return tensor


def same_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise if two tensors differ in shape."""
    if tensor.shape != other.shape:
        raise SepoError(
            f"{name} has shape {list(tensor.shape)}, expected {list(other.shape)}, that of {other_name}: pass one "
            "value for every token position."
        )
