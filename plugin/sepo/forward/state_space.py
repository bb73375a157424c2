"""The state-space recurrence of Mamba 2 in chunks, with a state to start from, for layers without mamba_ssm's kernels.

Structured state space duality (arXiv 2405.21060, section 6): for each head, with a step dt and a decay A < 0,

    S_t = exp(A dt_t) S_{t-1} + dt_t x_t B_t^T,    y_t = S_t C_t + D x_t.

Within a chunk, this is attention with decaying weights; states pass from chunk to chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sepo.forward.chunked import at_least_float32

_CHUNK = 64
"""Maximum number of tokens of a chunk; results do not depend on it."""


def chunk_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int = _CHUNK,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
) -> Any:
    """Compute the recurrence; the arguments are those of ``mamba_ssm``'s ``mamba_chunk_scan_combined``.

    Args:
        x: [R, T, H, P].
        dt: [R, T, H].
        A: [H].
        B: [R, T, G, N], for H / G heads each.
        C: [R, T, G, N].
        chunk_size: maximum number of tokens of a chunk.
        D: [H].
        z: gate, [R, T, H, P].
        dt_bias: [H], added to dt.
        dt_softplus: whether dt is the softplus of the sum.
        dt_limit: range of dt.
        initial_states: S before the first token, [R, H, P, N]; None for zeros.
        return_final_states: whether to return S after the last token.

    Returns:
        y [R, T, H, P] in the dtype of x, and the final states if they were requested.
    """
    length, heads = x.shape[1:3]
    kind, size = x.dtype, min(chunk_size, _CHUNK)
    x, dt, A, B, C = (at_least_float32(each) for each in (x, dt, A, B, C))
    dt = dt if dt_bias is None else dt + dt_bias
    dt = (F.softplus(dt) if dt_softplus else dt).clamp(*dt_limit)
    more = -length % size  # tokens with a step of 0, which leave the state unchanged

    def chunks(tokens: Tensor) -> Tensor:
        """Reshape [R, T, H or G, ...] to [R, chunks, H, size, ...]."""
        tokens = F.pad(tokens, (0, 0) * (tokens.dim() - 2) + (0, more)).unflatten(1, (-1, size)).transpose(2, 3)
        return tokens.repeat_interleave(heads // tokens.shape[2], 2)

    inputs, decay, keys, queries = chunks(x * dt[..., None]), chunks(A * dt).cumsum(-1), chunks(B), chunks(C)
    later = torch.ones(size, size, dtype=torch.bool, device=x.device).triu(1)
    weights = (decay[..., :, None] - decay[..., None, :]).masked_fill(later, -torch.inf).exp()
    within = (queries @ keys.transpose(-1, -2) * weights) @ inputs
    to_end = (decay[..., -1:] - decay).exp()
    added = (inputs * to_end[..., None]).transpose(-1, -2) @ keys  # [R, chunks, H, P, N]
    state = torch.zeros_like(added[:, 0]) if initial_states is None else initial_states.to(added)
    before = []
    for index in range(added.shape[1]):
        before.append(state)
        state = state * decay[:, index, :, -1, None, None].exp() + added[:, index]
    across = (queries * decay[..., None].exp()) @ torch.stack(before, 1).transpose(-1, -2)
    y = (within + across).transpose(2, 3).flatten(1, 2)[:, :length]
    y = y if D is None else y + D[:, None] * x
    y = (y if z is None else y * F.silu(at_least_float32(z))).to(kind)
    return (y, state) if return_final_states else y
