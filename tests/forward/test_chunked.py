"""The chunked log-probabilities against their slow twin: full logits, log_softmax, gather."""

import math

import pytest
import torch
from torch import nn

from sepo.errors import SepoError
from sepo.forward.chunked import (
    IDENTITY,
    LogitTransform,
    default_chunk_tokens,
    token_log_probs,
    token_log_probs_by_module,
)
from tests.support.chunks import CHUNKS, TRANSFORMS, H, V, assert_close, inputs

BIAS = pytest.mark.parametrize("with_bias", [False, True], ids=["no_bias", "bias"])
# Relative to the largest entry, against float64: the error of the plain head in that dtype, with a margin.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-2}


def plain(hidden, weight, bias, targets, transform=IDENTITY):
    logits = nn.functional.linear(hidden, weight, bias)
    logits = transform(logits if logits.dtype == torch.float64 else logits.float())
    return logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def gradients(logps, upstream, *tensors):
    leaves = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
    return torch.autograd.grad((logps * upstream.to(logps)).sum(), leaves)


@CHUNKS
@TRANSFORMS
@BIAS
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trainable"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equals_full_logits_in_float64(dtype, frozen, with_bias, transform, chunk_tokens):
    hidden, weight, bias, targets, upstream = inputs(dtype, with_bias=with_bias, frozen=frozen)
    wide = [None if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in (hidden, weight, bias)]
    expected = plain(*wide, targets, transform)

    logps = token_log_probs(hidden, weight, targets, bias=bias, chunk_tokens=chunk_tokens, transform=transform)
    grads = gradients(logps, upstream, hidden, weight, bias)

    assert logps.dtype == torch.promote_types(dtype, torch.float32)
    assert [grad.dtype for grad in grads] == [dtype] * len(grads)
    assert_close([logps, *grads], [expected, *gradients(expected, upstream, *wide)], TOLERANCE[dtype])


@CHUNKS
@TRANSFORMS
@BIAS
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trainable"])
def test_by_module_equals_full_logits(frozen, with_bias, transform, chunk_tokens):
    hidden, weight, bias, targets, upstream = inputs(with_bias=with_bias, frozen=frozen)
    expected = plain(hidden, weight, bias, targets, transform)
    logps = token_log_probs_by_module(
        hidden,
        lambda states: nn.functional.linear(states, weight, bias),
        targets,
        chunk_tokens=chunk_tokens or default_chunk_tokens(V),
        transform=transform,
    )
    leaves = hidden, weight, bias
    assert_close(
        [logps, *gradients(logps, upstream, *leaves)],
        [expected, *gradients(expected, upstream, *leaves)],
        TOLERANCE[torch.float64],
    )


@BIAS
@pytest.mark.parametrize("trains", ["hidden", "weight", "all"])
def test_gradcheck(trains, with_bias):
    hidden, weight, bias, targets, _ = inputs(with_bias=with_bias, frozen=trains == "hidden", n=3)
    hidden.requires_grad_(trains != "weight")
    transform = LogitTransform(scale=0.7, softcap=2.0)

    def function(hidden, weight, bias):
        return token_log_probs(hidden, weight, targets, bias=bias, chunk_tokens=2, transform=transform)

    assert torch.autograd.gradcheck(function, (hidden, weight, bias))


def test_a_second_derivative_raises():
    hidden, weight, bias, targets, _ = inputs(frozen=True)
    loss = token_log_probs(hidden, weight, targets, bias=bias).square().sum()
    (grad,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trainable"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_autocast_equals_the_plain_head_under_autocast(dtype, frozen):
    hidden, weight, bias, targets, upstream = inputs(dtype, frozen=frozen)
    leaves = hidden, weight, bias
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps = token_log_probs(hidden, weight, targets, bias=bias, chunk_tokens=3)
        expected = plain(hidden, weight, bias, targets)
    torch.testing.assert_close(logps, expected, rtol=1e-6, atol=1e-6)  # the same bfloat16 logits
    bfloat16_rounding = 1e-2 if dtype == torch.float32 else 1e-13  # autocast does not cast float64
    result, target = gradients(logps, upstream, *leaves), gradients(expected, upstream, *leaves)
    assert_close(result, [grad.double() for grad in target], bfloat16_rounding)
    assert [grad.dtype for grad in result] == [dtype] * len(result)


@pytest.mark.parametrize("trains", ["weight", "bias"])
def test_only_what_trains_gets_a_gradient(trains):
    hidden, weight, bias, targets, _ = inputs(frozen=True)
    {"weight": weight, "bias": bias}[trains].requires_grad_()
    logps = token_log_probs(hidden.detach(), weight, targets, bias=bias)
    grads = logps.grad_fn.apply(torch.ones_like(logps))
    assert [grad is not None for grad in grads[:3]] == [False, trains == "weight", trains == "bias"]


@pytest.mark.parametrize("transform", [IDENTITY, LogitTransform(softcap=30.0)], ids=["identity", "softcap"])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trainable"])
def test_extreme_logits_stay_finite_and_correct(frozen, transform):
    hidden, weight, bias, targets, upstream = inputs(torch.float32, frozen=frozen)
    with torch.no_grad():
        bias *= 1e4
    leaves = hidden, weight, bias
    logps = token_log_probs(hidden, weight, targets, bias=bias, chunk_tokens=2, transform=transform)
    expected = plain(*leaves, targets, transform)
    assert logps.isfinite().all()
    assert transform.softcap is not None or logps.min() < -1e4
    torch.testing.assert_close(logps, expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(gradients(logps, upstream, *leaves), gradients(expected, upstream, *leaves))


def test_gradient_of_a_target_far_below_the_rest():
    """The log norm must not be rebuilt from the target's own log-probability: -1e9 - 5 is -1e9 in float32."""
    hidden = torch.ones(1, 1, requires_grad=True)
    weight, bias = torch.tensor([[0.0], [5.0], [4.0]]), torch.tensor([-1e9, 0.0, 0.0])
    (grad,) = torch.autograd.grad(token_log_probs(hidden, weight, torch.tensor([0]), bias=bias), hidden)
    assert grad.item() == pytest.approx(-(5 + 4 * math.exp(-1)) / (1 + math.exp(-1)), rel=1e-6)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trainable"])
@pytest.mark.parametrize("by_module", [True, False])
def test_no_tokens_give_an_empty_result_with_a_graph(by_module, frozen):
    hidden, weight, bias, targets, upstream = inputs(torch.float32, frozen=frozen, n=0)
    leaves = hidden, weight, bias
    if by_module:
        logps = token_log_probs_by_module(
            hidden, lambda states: nn.functional.linear(states, weight, bias), targets, chunk_tokens=4
        )
    else:
        logps = token_log_probs(hidden, weight, targets, bias=bias)
    assert logps.shape == (0,)
    for leaf, grad in zip([t for t in leaves if t.requires_grad], gradients(logps, upstream, *leaves), strict=True):
        assert torch.equal(grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trainable"])
@pytest.mark.parametrize("by_module", [True, False])
def test_memory_for_the_backward_pass_does_not_grow_with_the_vocabulary(by_module, frozen):
    tokens, vocabulary = 512, 20_000
    hidden = torch.randn(tokens, H, requires_grad=True)
    weight = torch.randn(vocabulary, H, requires_grad=not frozen)
    targets = torch.randint(vocabulary, (tokens,))
    kept = []

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr():  # the head exists anyway
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        if by_module:
            token_log_probs_by_module(hidden, lambda states: states @ weight.T, targets, chunk_tokens=16)
        else:
            token_log_probs(hidden, weight, targets, chunk_tokens=16)
    assert 0 < sum(kept) <= tokens * (H + 2)


@pytest.mark.parametrize("chunk_tokens", [0, -1])
def test_a_chunk_below_one_token_raises(chunk_tokens):
    hidden, weight, _, targets, _ = inputs()
    with pytest.raises(SepoError, match=f"chunk_tokens is {chunk_tokens}, expected at least 1"):
        token_log_probs(hidden, weight, targets, chunk_tokens=chunk_tokens)
    with pytest.raises(SepoError, match=f"chunk_tokens is {chunk_tokens}, expected at least 1"):
        token_log_probs_by_module(hidden, lambda states: states, targets, chunk_tokens=chunk_tokens)


@pytest.mark.parametrize("vocabulary", [1, 49_152, 262_144, 1 << 25])
def test_default_chunk_is_64_mib_of_logits(vocabulary):
    chunk = default_chunk_tokens(vocabulary)
    assert chunk == 1 or chunk * vocabulary * 4 <= 64 * 2**20 < (chunk + 1) * vocabulary * 4
