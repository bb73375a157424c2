"""Token weights from an unbalanced optimal transport between the hidden states of a pair's responses (OTPO)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TOLERANCE = 1e-6
"""Bound on the relative error of a weight that the iteration leaves, besides rounding."""

_MAX_ITERATIONS = 1000


@torch.no_grad()
def transport_weights(chosen: Tensor, rejected: Tensor, *, reg: float, reg_m: float) -> tuple[Tensor, Tensor]:
    """Compute the token weights of a pair: the marginals of an unbalanced transport plan between its responses.

    Source: OTPO (Li et al. 2025, arXiv 2505.18720). Every token has mass 1, the cost of a pair of tokens is the
    Euclidean distance between their states, divided by the largest one if that is above 1, and the plan P minimizes

        sum_ij C_ij P_ij + reg KL(P || 1) + reg_m KL(P 1 || 1) + reg_m KL(P' 1 || 1).

    A token's weight is its row or column sum of P; P is scaled so that the weights of each response sum to the number
    of tokens of the shorter one. Tokens that resemble some of the other response weigh more.

    Args:
        chosen: [n, H] states of the chosen response's tokens; of each, the state from which it is predicted. Any
            floating dtype; the result has at least float32.
        rejected: [m, H].
        reg: weight of the entropic regularization, above 0; the larger, the more even the weights.
        reg_m: weight of the deviation of the marginals from 1, above 0; the larger, the more even the weights.

    Returns:
        Weights [n] of the chosen and [m] of the rejected tokens, at least 0, detached; each sums to min(n, m).
    """
    cost = _distances(chosen, rejected)
    if not cost.numel():
        return cost.new_zeros(len(chosen)), cost.new_zeros(len(rejected))
    cost /= cost.amax().clamp(min=1.0)
    rows, columns = _log_marginals(cost.div_(-reg), reg=reg, exponent=reg_m / (reg_m + reg))
    total = min(cost.shape)
    return total * rows.softmax(0), total * columns.softmax(0)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Compute the Euclidean distances [n, m] between the rows of [n, H] and [m, H], in float32 or wider."""
    with torch.autocast(x.device.type, enabled=False):
        x, y = (states.to(torch.promote_types(states.dtype, torch.float32)) for states in (x, y))
        # States of a model have a large common component, in which the squares would lose digits.
        center = x.mean(0)
        x, y = x - center, y - center
        squares = x.square().sum(-1, keepdim=True) + y.square().sum(-1)
        squared = torch.addmm(squares, x, y.T, alpha=-2.0)
        # Equal states, such as those that predict the first tokens, have a distance of 0, not of sqrt(eps).
        return squared.masked_fill_(squared < 8 * torch.finfo(x.dtype).eps * squares, 0.0).sqrt_()


def _log_marginals(kernel: Tensor, *, reg: float, exponent: float) -> tuple[Tensor, Tensor]:
    """Compute the logs of the plan's row sums [n] and column sums [m], up to a common constant.

    Generalized Sinkhorn iterations (Chizat et al. 2018, arXiv 1607.05816) for marginals of 1, in the log domain: with
    P_ij = exp(f_i + g_j + kernel_ij), f = -exponent * log sum_j exp(g_j + kernel_ij), and likewise g.

    Args:
        kernel: [n, m] in [-1 / reg, 0], the negative cost divided by ``reg``.
        reg: see ``transport_weights``.
        exponent: reg_m / (reg_m + reg).
    """
    rows = kernel.logsumexp(1)
    for _ in range(_iterations(reg, exponent)):
        f = -exponent * rows
        columns = (kernel + f[:, None]).logsumexp(0)
        g = -exponent * columns
        rows = (kernel + g).logsumexp(1)
    return f + rows, g + columns


def _iterations(reg: float, exponent: float) -> int:
    """Return the number of iterations after which the weights are within the tolerance, whatever the states.

    An iteration contracts Hilbert's metric, which ignores the scale of the plan, by (exponent * tanh(1 / (2 reg)))^2,
    as costs are in [0, 1] (Birkhoff), and the first step moves by at most exponent / reg.
    """
    rate = (exponent * math.tanh(0.5 / reg)) ** 2
    bound = exponent / reg / (1.0 - rate) if rate < 1.0 else math.inf
    if rate == 0.0 or bound <= _TOLERANCE:
        return 1
    if bound == math.inf:
        return _MAX_ITERATIONS
    return min(_MAX_ITERATIONS, max(1, math.ceil(math.log(_TOLERANCE / bound) / math.log(rate))))
