"""Hidden states and weights of a head, and parameters of tests that compute its log-probabilities in chunks."""

import pytest
import torch

from sepo.forward.chunked import (
    IDENTITY,
    LogitTransform,
)

N, H, V = 7, 8, 37
CHUNKS = pytest.mark.parametrize("chunk_tokens", [1, 3, 100, None])
TRANSFORMS = pytest.mark.parametrize(
    "transform",
    [IDENTITY, LogitTransform(softcap=3.0), LogitTransform(scale=0.3), LogitTransform(scale=2.5, softcap=3.0)],
    ids=["identity", "softcap", "scale", "both"],
)


def inputs(dtype=torch.float64, *, with_bias=True, frozen=False, n=N):
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape, trains):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(trains)

    hidden = leaf(n, H, trains=True)
    weight = leaf(V, H, trains=not frozen)
    bias = leaf(V, trains=not frozen) if with_bias else None
    upstream = torch.randn(n, generator=generator, dtype=torch.float64)
    return hidden, weight, bias, torch.randint(V, (n,), generator=generator), upstream


def assert_close(actual, expected, tolerance):
    for result, target in zip(actual, expected, strict=True):
        torch.testing.assert_close(result.double(), target, rtol=0, atol=tolerance * target.abs().max().item())
