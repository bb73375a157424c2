"""The gated delta rule in chunks, for layers without fla's kernels: the memory of one chunk, in both passes.

Gated DeltaNet (arXiv 2412.06464, equation 10): for each head, with a decay exp(g) and a strength beta,

    S_t = exp(g_t) S_{t-1} + k_t (beta_t (v_t - exp(g_t) S_{t-1}^T k_t))^T,    y_t = S_t^T q_t.

With G the sum of g since the start of a chunk, and S the state before it, the updates u of a chunk solve a triangular
system (section 3.3 of the paper, for one chunk):

    u_i + beta_i sum_{j < i} exp(G_i - G_j) (k_i . k_j) u_j = beta_i (v_i - exp(G_i) S^T k_i)
    y_i = exp(G_i) S^T q_i + sum_{j <= i} exp(G_i - G_j) (q_i . k_j) u_j
    S' = exp(G_C) S + sum_j exp(G_C - G_j) k_j u_j^T

The backward pass has the states between chunks, and recomputes a chunk at a time. Transformers' function keeps every
step of its forward substitution: for a chunk of a head, 85,344 numbers, 3.5 times those of its queries, keys and values
of size 128.

Slow twin: the recurrence token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sepo.forward.chunked import at_least_float32

_CHUNK = 64
"""Number of tokens of a chunk; results do not depend on it."""
_EPSILON = 1e-6
"""Added to the square of a norm, as in fla's kernels."""


def chunk_gated_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    chunk_size: int = _CHUNK,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute the recurrence; the arguments are those of transformers' ``torch_chunk_gated_delta_rule``.

    All arithmetic is in float32 (float64 for such inputs), also under autocast. Transformers normalizes queries and
    keys in their own dtype; here that is in float32 as well, as in fla's kernels.

    Args:
        query: [R, T, H, K]; scaled by the square root of 1 / K.
        key: [R, T, H, K].
        value: [R, T, H, V].
        g: logarithm of the decay, [R, T, H].
        beta: strength of the update, [R, T, H].
        chunk_size: number of tokens of a chunk.
        initial_state: S before the first token, [R, H, K, V]; None for zeros.
        output_final_state: whether to return S after the last token.
        use_qk_l2norm_in_kernel: whether queries and keys are divided by their norms.

    Returns:
        y [R, T, H, V] in the dtype of the query, and the final state or None.
    """
    if initial_state is None:
        rows, _, heads, size = key.shape
        initial_state = at_least_float32(value.new_zeros(rows, heads, size, value.shape[-1]))
    output, state = _DeltaRule.apply(query, key, value, g, beta, initial_state, chunk_size, use_qk_l2norm_in_kernel)
    return output, state if output_final_state else None


class _DeltaRule(torch.autograd.Function):
    """The recurrence; saves its inputs and the states between chunks."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, initial: Tensor,
        size: int, normalized: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        inputs = (query, key, value, g, beta)
        output = torch.empty_like(value, dtype=query.dtype)
        state = at_least_float32(initial).flatten(0, 1)
        states = []
        with torch.autocast(query.device.type, enabled=False):
            for start in range(0, query.shape[1], size):
                states.append(state)
                chunk = _chunk(_tokens(inputs, start, size, normalized), state)
                outputs = torch.bmm(chunk.within, chunk.updates).baddbmm_(chunk.tokens.query * chunk.growth, state)
                output[:, start : start + size] = _by_token(outputs, output)
                state = torch.bmm(chunk.kept_keys.mT, chunk.updates).addcmul_(chunk.growth[:, -1:], state)
        ctx.save_for_backward(*inputs, *states)
        ctx.set_materialize_grads(False)
        ctx.size, ctx.normalized, ctx.of_initial = size, normalized, (initial.shape, initial.dtype)
        return output, state.view(initial.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_output: Tensor | None, of_state: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # checkpointing allows it to be read once
        inputs, states = saved[:5], saved[5:]
        slopes = [torch.empty_like(each) for each in inputs]
        slope = torch.zeros_like(states[0]) if of_state is None else of_state.flatten(0, 1)
        with torch.autocast(slope.device.type, enabled=False):
            for index in reversed(range(len(states))):
                start = index * ctx.size
                tokens = _tokens(inputs, start, ctx.size, ctx.normalized)
                upstream = None if of_output is None else _by_head(of_output[:, start : start + ctx.size])
                *found, slope = _chunk_slopes(_chunk(tokens, states[index]), states[index], upstream, slope)
                for whole, part in zip(slopes, found, strict=True):
                    whole[:, start : start + ctx.size] = _by_token(part, whole)
        shape, dtype = ctx.of_initial
        return *slopes, slope.view(shape).to(dtype), None, None


class _Tokens(NamedTuple):
    """The tokens of a chunk, with N = R H and C tokens.

    Args:
        query: [N, C, K], scaled.
        key: [N, C, K].
        value: [N, C, V].
        decay: G, [N, C, 1].
        beta: [N, C, 1].
        scale: the factor of a query besides its norm.
        norms: reciprocal norms of the query and the key that were given, [N, C, 1] each; None if they were not divided.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    decay: Tensor
    beta: Tensor
    scale: float
    norms: tuple[Tensor, Tensor] | None


def _tokens(inputs: Sequence[Tensor], start: int, size: int, normalized: bool) -> _Tokens:
    query, key, value, g, beta = (_by_head(each[:, start : start + size]) for each in inputs)
    scale = query.shape[-1] ** -0.5
    norms: tuple[Tensor, Tensor] | None = None
    if normalized:
        norms = _reciprocal_norm(query), _reciprocal_norm(key)
        query, key = query * norms[0], key * norms[1]
    return _Tokens(query * scale, key, value, g.cumsum(1)[..., None], beta[..., None], scale, norms)


def _reciprocal_norm(values: Tensor) -> Tensor:
    return (values.square().sum(-1, keepdim=True) + _EPSILON).rsqrt_()


def _by_head(tokens: Tensor) -> Tensor:
    """Return tokens [R, C, H, ...] as [R H, C, ...], in float32 or wider."""
    return at_least_float32(tokens).transpose(1, 2).flatten(0, 1).contiguous()


def _by_token(values: Tensor, whole: Tensor) -> Tensor:
    """Return values [R H, C, ...] as [R, C, H, ...], a view; ``whole`` is [R, T, H, ...]."""
    return values.unflatten(0, (whole.shape[0], whole.shape[2])).transpose(1, 2)


class _Chunk(NamedTuple):
    """What both passes compute of a chunk.

    Args:
        tokens: its tokens.
        growth: exp(G_i), [N, C, 1].
        kept: exp(G_C - G_i), [N, C, 1].
        kept_keys: the keys multiplied by it, [N, C, K].
        decays: exp(G_i - G_j) for j <= i, and 0, [N, C, C].
        within: the same times q_i . k_j.
        overlaps: the same times k_i . k_j.
        system: beta_i times ``overlaps`` for j < i, the triangular system without its diagonal of ones.
        errors: v_i - exp(G_i) S^T k_i, [N, C, V].
        updates: u, [N, C, V].
    """

    tokens: _Tokens
    growth: Tensor
    kept: Tensor
    kept_keys: Tensor
    decays: Tensor
    within: Tensor
    overlaps: Tensor
    system: Tensor
    errors: Tensor
    updates: Tensor


def _chunk(tokens: _Tokens, state: Tensor) -> _Chunk:
    """Compute a chunk from the state [N, K, V] before it."""
    key, decay = tokens.key, tokens.decay
    size = key.shape[1]
    later = torch.ones(size, size, dtype=torch.bool, device=key.device).triu_(1)
    decays = (decay - decay.mT).masked_fill_(later, -torch.inf).exp_()
    growth, kept = decay.exp(), (decay[:, -1:] - decay).exp_()
    overlaps = torch.bmm(key, key.mT).mul_(decays)
    system = (overlaps * tokens.beta).tril_(-1)
    errors = torch.bmm(key, state).mul_(growth).neg_().add_(tokens.value)
    updates = torch.linalg.solve_triangular(system, errors * tokens.beta, upper=False, unitriangular=True)
    within = torch.bmm(tokens.query, key.mT).mul_(decays)
    return _Chunk(tokens, growth, kept, key * kept, decays, within, overlaps, system, errors, updates)


def _chunk_slopes(chunk: _Chunk, state: Tensor, of_output: Tensor | None, of_state: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of a chunk's query, key, value, g and beta as they were given, and of the state before it.

    Args:
        chunk: from ``_chunk``.
        state: the state before it, [N, K, V].
        of_output: gradient of the chunk's outputs, [N, C, V]; None for zeros.
        of_state: gradient of the state after it, [N, K, V].
    """
    tokens, updates = chunk.tokens, chunk.updates
    query, key, beta = tokens.query, tokens.key, tokens.beta
    if of_output is None:
        of_output = torch.zeros_like(updates)
    # y = growth q S + within u
    across = torch.bmm(of_output, state.mT).mul_(chunk.growth)
    of_within = torch.bmm(of_output, updates.mT)
    of_decay = (across * query).sum(-1) + _of_differences(of_within * chunk.within)
    of_within.mul_(chunk.decays)
    of_query = across.baddbmm_(of_within, key)
    # S' = growth_C S + (kept k)^T u
    of_key = torch.bmm(updates, of_state.mT).mul_(chunk.kept)
    ending = (of_key * key).sum(-1)
    of_decay -= ending
    of_decay[:, -1] += ending.sum(-1) + chunk.growth[:, -1, 0] * (state * of_state).sum((1, 2))
    of_key.baddbmm_(of_within.mT, query)
    # (1 + system) u = beta errors
    of_updates = torch.bmm(chunk.kept_keys, of_state).baddbmm_(chunk.within.mT, of_output)
    of_right = torch.linalg.solve_triangular(chunk.system.mT, of_updates, upper=True, unitriangular=True)
    of_system = torch.bmm(of_right, updates.mT).neg_().tril_(-1)
    of_beta = (of_right * chunk.errors).sum(-1) + (of_system * chunk.overlaps).sum(-1)
    of_decay += _of_differences(of_system * chunk.system)
    of_overlaps = of_system.mul_(chunk.decays).mul_(beta)
    of_key.baddbmm_(of_overlaps, key).baddbmm_(of_overlaps.mT, key)
    # errors = v - growth S^T k
    of_value = of_right.mul_(beta)
    of_decay -= (of_value * (tokens.value - chunk.errors)).sum(-1)
    of_held = of_value * -chunk.growth
    of_key.baddbmm_(of_held, state.mT)
    of_before = torch.bmm(key.mT, of_held).baddbmm_((query * chunk.growth).mT, of_output)
    of_before.addcmul_(chunk.growth[:, -1:], of_state)
    of_g = of_decay.flip(1).cumsum(1).flip(1)
    if tokens.norms is not None:
        of_query = _of_normalized(of_query, query / tokens.scale, tokens.norms[0])
        of_key = _of_normalized(of_key, key, tokens.norms[1])
    return of_query * tokens.scale, of_key, of_value, of_g, of_beta, of_before


def _of_differences(slopes: Tensor) -> Tensor:
    """Return the gradient of G, [N, C], from that of the differences G_i - G_j, [N, C, C]."""
    return slopes.sum(2) - slopes.sum(1)


def _of_normalized(slope: Tensor, values: Tensor, norm: Tensor) -> Tensor:
    """Return the gradient of a vector from that of its normalized values; ``norm`` is the reciprocal norm."""
    return (slope - values * (values * slope).sum(-1, keepdim=True)).mul_(norm)
