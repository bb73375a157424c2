"""The gated delta rule in chunks against transformers' function and against the recurrence token by token."""

import functools
import importlib

import pytest
import torch

from sepo.forward.delta_rule import chunk_gated_delta_rule
from sepo.memory.live import LiveBytes
from tests.support.recurrences import delta_rule

FAMILIES = ["qwen3_5", "qwen3_next"]


def without_kernels(family):
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}").torch_chunk_gated_delta_rule


def drawn(rows, length, heads, keys, values, *, dtype=torch.float32, seed=0):
    """Return query, key, value, g, beta and a state, which require gradients."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=dtype)

    tokens = (rows, length, heads)
    arguments = (
        normal(*tokens, keys),
        normal(*tokens, keys),
        normal(*tokens, values),
        -normal(*tokens).exp(),
        normal(*tokens).sigmoid(),
        normal(rows, heads, keys, values),
    )
    return [each.requires_grad_() for each in arguments]


def results(function, arguments, *, normalized=True, state=True, final=True):
    """Return outputs and final state, and the gradients of a weighted sum of them."""
    *tokens, initial = arguments
    found = function(
        *tokens[:3], g=tokens[3], beta=tokens[4], initial_state=initial if state else None, output_final_state=final,
        use_qk_l2norm_in_kernel=normalized,
    )  # fmt: skip
    assert (found[1] is not None) == final
    found = [each for each in found if each is not None]
    draw = torch.Generator().manual_seed(1)
    weights = [torch.randn(each.shape, generator=draw).to(each) for each in found]
    used = arguments if state else tokens
    return found, torch.autograd.grad(found, used, weights)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [1, 64, 150])
def test_equals_transformers_function(family, length):
    arguments = drawn(2, length, 3, 16, 12)
    for options in ({}, {"state": False}, {"final": False}, {"normalized": False}):
        if options == {"normalized": False}:  # only short keys leave the state bounded
            arguments = [each.detach() * 0.2 for each in arguments[:2]] + arguments[2:]
            arguments = [each.requires_grad_() for each in arguments]
        values, gradients = results(chunk_gated_delta_rule, arguments, **options)
        expected, slopes = results(without_kernels(family), arguments, **options)
        for value, other in zip(values, expected, strict=True):
            torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-5)
        for gradient, other in zip(gradients, slopes, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("size", [64, 4])
def test_equals_the_recurrence_in_float64(size, normalized):
    arguments = drawn(2, 11, 2, 5, 3, dtype=torch.float64)
    if not normalized:
        arguments[1] = (arguments[1].detach() * 0.3).requires_grad_()
    in_chunks = functools.partial(chunk_gated_delta_rule, chunk_size=size)
    values, gradients = results(in_chunks, arguments, normalized=normalized)
    expected, slopes = results(delta_rule, arguments, normalized=normalized)
    for found, other in zip((*values, *gradients), (*expected, *slopes), strict=True):
        torch.testing.assert_close(found, other, rtol=1e-11, atol=1e-11)


def test_strong_decays_stay_finite():
    """exp(G_i - G_j) of a later token exceeds float32; it is never computed."""
    arguments = drawn(1, 70, 2, 8, 8)
    arguments[3] = torch.full((1, 70, 2), -20.0, requires_grad=True)
    values, gradients = results(chunk_gated_delta_rule, arguments)
    assert all(each.isfinite().all() for each in (*values, *gradients))


def test_half_precision_is_float32_inside():
    """Inputs in bfloat16 give the results in float32, rounded once; gradients have the dtypes of the inputs."""
    exact = [each.detach().bfloat16().float().requires_grad_() for each in drawn(2, 90, 3, 16, 12)]
    half = [each.detach().bfloat16().requires_grad_() for each in exact[:5]] + [exact[5]]
    with torch.autocast("cpu", torch.bfloat16):
        values, gradients = results(chunk_gated_delta_rule, half)
    expected, slopes = results(chunk_gated_delta_rule, exact)
    assert [each.dtype for each in values] == [torch.bfloat16, torch.float32]
    torch.testing.assert_close(values[0].float(), expected[0], rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(values[1], expected[1], rtol=0, atol=1e-6)
    assert [each.dtype for each in gradients] == [each.dtype for each in half]
    for gradient, other in zip(gradients, slopes, strict=True):
        torch.testing.assert_close(gradient.float(), other, rtol=2**-6, atol=2**-8 * other.abs().max().item())


def test_one_of_both_outputs_is_used():
    for used in (0, 1):
        arguments = drawn(1, 9, 2, 5, 3, dtype=torch.float64)
        pairs = []
        for function in (functools.partial(chunk_gated_delta_rule, chunk_size=4), delta_rule):
            *tokens, state = arguments
            found = function(*tokens, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True)
            pairs.append(torch.autograd.grad(found[used].square().sum(), arguments, allow_unused=True))
        for gradient, other in zip(*pairs, strict=True):
            other = torch.zeros_like(gradient) if other is None else other  # the state does not depend on the query
            torch.testing.assert_close(gradient, other, rtol=1e-11, atol=1e-11)


def peak_and_kept(function):
    """Return the peak of live bytes over both passes and what is live between them, as shares of the inputs' bytes."""
    arguments = drawn(2, 1024, 2, 32, 32)
    live = LiveBytes()
    live.leave_out(arguments)
    with live:
        output, _ = function(
            *arguments[:3], g=arguments[3], beta=arguments[4], initial_state=arguments[5], output_final_state=False,
            use_qk_l2norm_in_kernel=True,
        )  # fmt: skip
        kept = live.now
        output.sum().backward()
    size = sum(each.numel() * each.element_size() for each in arguments)
    return live.peak / size, kept / size


def test_memory_is_that_of_the_inputs_and_a_chunk():
    """Kept are the outputs and a state for each chunk: a third and a sixth of these inputs."""
    peak, kept = peak_and_kept(chunk_gated_delta_rule)
    assert kept < 0.6
    assert peak < 3.0  # with the gradients, which are as large as the inputs
    other_peak, other_kept = peak_and_kept(without_kernels("qwen3_5"))
    assert kept < other_kept / 5
    assert peak < other_peak / 3
