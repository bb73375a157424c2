"""The last layer's MLP at the positions whose hidden states are read: after its attention, tokens do not interact."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sepo.forward.exchange import exchanged
from sepo.forward.recompute import is_computed_again

_WORTH_IT = 0.9
"""Share of positions above which gathering them costs as much as is saved."""


@contextlib.contextmanager
def last_mlp_only_at(inner: nn.Module, at: tuple[Tensor, Tensor], shape: torch.Size) -> Iterator[None]:
    """Run the last layer's MLP at the given positions only and return zeros elsewhere, for one forward pass.

    Args:
        inner: the causal language model without wrappers. It runs unchanged if its last layer has no ``mlp`` that maps
            a tensor to a tensor, or is recomputed in the backward pass (after this context).
        at: row and column of each position whose last hidden state is read, possibly repeated (the end of a prompt
            precedes both responses).
        shape: [B, T] of the hidden states.
    """
    mlp = _last_mlp(inner) if at[0].numel() <= _WORTH_IT * shape.numel() else None
    if mlp is None:
        yield
        return
    own = mlp.forward
    read = torch.zeros(shape, dtype=torch.bool, device=at[0].device)
    read[at] = True
    once = read.nonzero(as_tuple=True)

    def forward(states: Tensor) -> Tensor:
        if states.shape[:2] != shape:
            output: Tensor = own(states)
            return output
        values = own(states[once].unsqueeze(0)).squeeze(0)
        return values.new_zeros(*states.shape[:-1], values.shape[-1]).index_put(once, values)

    with exchanged(mlp, forward):
        yield


def _last_mlp(inner: nn.Module) -> Any:
    get_decoder: Any = getattr(inner, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else None
    layers = getattr(decoder, "layers", None) or getattr(decoder, "h", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return None
    mlp = getattr(layers[-1], "mlp", None)
    plain = isinstance(mlp, nn.Module) and "forward" not in mlp.__dict__ and not hasattr(mlp, "experts")
    # With torch's wrapper (FSDP's activation checkpointing), the layer inside has no sign of it.
    wrapped = hasattr(layers[-1], "_checkpoint_wrapped_module")
    again = torch.is_grad_enabled() and (wrapped or is_computed_again(layers[-1]))
    return mlp if plain and not again else None
