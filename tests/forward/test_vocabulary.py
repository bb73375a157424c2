"""KL(ref || policy) and the log of the sum of squared probabilities against their slow twins over full logits."""

import pytest
import torch
from torch import nn

from sepo.errors import SepoError
from sepo.forward import ReferenceStates, token_log_probs, token_statistics
from sepo.forward.chunked import IDENTITY, LogitTransform, token_statistics_by_module
from tests.support.chunks import CHUNKS, TRANSFORMS, H, N, V, assert_close, inputs

WIDTH = 5  # width of the reference's hidden states, which differs from the policy's
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}


def a_reference(dtype=torch.float64, *, n=N, transform=IDENTITY, vocabulary=V):
    """Return the states of the reference, and its full logits."""
    generator = torch.Generator().manual_seed(7)
    hidden, weight = (
        torch.randn(size, WIDTH, generator=generator, dtype=torch.float64).to(dtype) for size in (n, vocabulary)
    )

    def logits(states):
        raw = states @ weight.T
        return transform(raw if raw.dtype == torch.float64 else raw.float())

    return ReferenceStates(hidden, logits), logits(hidden).double()


def slow(hidden, weight, bias, targets, ref_logits, transform=IDENTITY):
    log_p = transform(nn.functional.linear(hidden, weight, bias)).log_softmax(-1)
    log_q = ref_logits.log_softmax(-1)
    logps = log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    kl = nn.functional.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)
    return logps, kl, log_p.exp().square().sum(-1).log()


def compute(by_module, hidden, weight, bias, targets, *, chunk_tokens, **options):
    if not by_module:
        return token_statistics(hidden, weight, targets, bias=bias, chunk_tokens=chunk_tokens, **options)

    def head(states):
        return nn.functional.linear(states, weight, bias)

    return token_statistics_by_module(hidden, head, targets, chunk_tokens=chunk_tokens or 64, **options)


def gradients(logps, kl, upstream, *leaves):
    """Return gradients of a sum with different weights for the two numbers of every token."""
    total = (logps * upstream.to(logps)).sum() + (kl * upstream.flip(0).to(kl) * 1.3).sum()
    return torch.autograd.grad(total, [leaf for leaf in leaves if leaf is not None and leaf.requires_grad])


@CHUNKS
@TRANSFORMS
@pytest.mark.parametrize("with_bias", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trainable"])
@pytest.mark.parametrize("by_module", [True, False], ids=["module", "linear"])
def test_values_and_gradients_equal_full_logits(by_module, frozen, with_bias, transform, chunk_tokens):
    hidden, weight, bias, targets, upstream = inputs(with_bias=with_bias, frozen=frozen)
    reference, ref_logits = a_reference(transform=LogitTransform(softcap=2.0))
    expected = slow(hidden, weight, bias, targets, ref_logits, transform)
    actual = compute(
        by_module, hidden, weight, bias, targets, chunk_tokens=chunk_tokens, transform=transform, reference=reference,
        with_p2=True,
    )  # fmt: skip
    assert not actual.log_sum_p2.requires_grad
    leaves = hidden, weight, bias
    assert_close(
        [actual.logps, actual.kl, actual.log_sum_p2, *gradients(actual.logps, actual.kl, upstream, *leaves)],
        [*expected, *gradients(*expected[:2], upstream, *leaves)],
        TOLERANCE[torch.float64],
    )


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trainable"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_narrow_dtypes_are_as_accurate_as_the_plain_head(dtype, frozen):
    hidden, weight, bias, targets, upstream = inputs(dtype, frozen=frozen)
    reference, ref_logits = a_reference(dtype)
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in (hidden, weight, bias)]
    expected = slow(*wide, targets, ref_logits)
    actual = compute(False, hidden, weight, bias, targets, chunk_tokens=3, reference=reference, with_p2=True)
    assert {actual.logps.dtype, actual.kl.dtype, actual.log_sum_p2.dtype} == {torch.float32}
    grads = gradients(actual.logps, actual.kl, upstream, hidden, weight, bias)
    assert {grad.dtype for grad in grads} == {dtype}
    assert_close(
        [actual.logps, actual.kl, actual.log_sum_p2, *grads],
        [*expected, *gradients(*expected[:2], upstream, *wide)],
        TOLERANCE[dtype],
    )


@pytest.mark.parametrize("trains", ["hidden", "weight", "all"])
def test_gradcheck(trains):
    hidden, weight, bias, targets, _ = inputs(frozen=trains == "hidden", n=3)
    hidden.requires_grad_(trains != "weight")
    reference, _ = a_reference(n=3)

    def function(hidden, weight, bias):
        statistics = token_statistics(
            hidden, weight, targets, bias=bias, chunk_tokens=2, transform=LogitTransform(scale=0.7, softcap=2.0),
            reference=reference,
        )  # fmt: skip
        return statistics.logps, statistics.kl

    assert torch.autograd.gradcheck(function, (hidden, weight, bias))


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trainable"])
def test_one_of_the_two_alone_carries_its_own_gradient(frozen):
    hidden, weight, bias, targets, upstream = inputs(frozen=frozen)
    leaves = [leaf for leaf in (hidden, weight, bias) if leaf.requires_grad]
    reference, ref_logits = a_reference()
    actual = compute(False, hidden, weight, bias, targets, chunk_tokens=3, reference=reference)
    expected = slow(hidden, weight, bias, targets, ref_logits)
    for result, target in ((actual.logps, expected[0]), (actual.kl, expected[1])):
        result, target = (
            torch.autograd.grad((x * upstream).sum(), leaves, retain_graph=True) for x in (result, target)
        )
        assert_close(result, target, 1e-12)


@pytest.mark.parametrize("transform", [IDENTITY, LogitTransform(softcap=30.0)], ids=["identity", "softcap"])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trainable"])
@pytest.mark.parametrize("by_module", [True, False], ids=["module", "linear"])
def test_logits_of_ten_thousand_stay_finite_and_correct(by_module, frozen, transform):
    hidden, weight, bias, targets, upstream = inputs(torch.float32, frozen=frozen)
    with torch.no_grad():
        bias *= 1e4
    states, _ = a_reference(torch.float32)
    reference = ReferenceStates(states.hidden, lambda hidden: states.logits(hidden) * 1e4)
    ref_logits = reference.logits(reference.hidden).double()
    actual = compute(
        by_module, hidden, weight, bias, targets, chunk_tokens=2, transform=transform, reference=reference,
        with_p2=True,
    )  # fmt: skip
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in (hidden, weight, bias)]
    expected = slow(*wide, targets, ref_logits, transform)
    grads = gradients(actual.logps, actual.kl, upstream, hidden, weight, bias)
    values = [actual.logps, actual.kl, actual.log_sum_p2]
    assert all(value.isfinite().all() for value in (*values, *grads))
    assert transform.softcap is not None or actual.kl.max() > 1e4
    # float32 holds a logit of 10,000 to 0.001, and the largest difference of two to 1e-7 of itself
    for result, target in zip(values, expected, strict=True):
        torch.testing.assert_close(result.double(), target, rtol=1e-6, atol=5e-3)
    assert_close(grads, gradients(*expected[:2], upstream, *wide), 5e-3)


def test_an_equal_reference_has_no_divergence_and_no_gradient():
    hidden, weight, bias, targets, _ = inputs(torch.float32)
    reference = ReferenceStates(
        hidden.detach().clone(), lambda states: nn.functional.linear(states, weight.detach(), bias.detach())
    )
    kl = token_statistics(hidden, weight, targets, bias=bias, chunk_tokens=3, reference=reference).kl
    assert not kl.any()
    assert not any(grad.any() for grad in torch.autograd.grad(kl.sum(), (hidden, weight, bias)))


def test_a_small_divergence_is_accurate_to_a_millionth_of_a_nat():
    hidden, weight, bias, targets, _ = inputs(torch.float32)
    reference = ReferenceStates(
        hidden.detach() + 0.05, lambda states: nn.functional.linear(states, weight.detach(), bias.detach())
    )
    kl = token_statistics(hidden, weight, targets, bias=bias, reference=reference).kl
    wide = [tensor.detach().double() for tensor in (hidden, weight, bias)]
    ref_logits = nn.functional.linear(reference.hidden.double(), *wide[1:])
    expected = slow(*wide, targets, ref_logits)[1]
    assert 1e-4 < expected.min() < expected.max() < 2e-2
    torch.testing.assert_close(kl.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trainable"])
def test_log_probabilities_are_bitwise_equal_without_the_other_statistics(frozen):
    hidden, weight, bias, targets, upstream = inputs(torch.float32, frozen=frozen)
    reference, _ = a_reference(torch.float32)
    leaves = [leaf for leaf in (hidden, weight, bias) if leaf.requires_grad]
    alone = token_log_probs(hidden, weight, targets, bias=bias, chunk_tokens=3)
    beside = token_statistics(
        hidden, weight, targets, bias=bias, chunk_tokens=3, reference=reference, with_p2=True
    ).logps
    assert torch.equal(alone, beside)
    result, target = (torch.autograd.grad((x * upstream.float()).sum(), leaves) for x in (alone, beside))
    assert all(torch.equal(a, b) for a, b in zip(result, target, strict=True))


@pytest.mark.parametrize("by_module", [True, False], ids=["module", "linear"])
def test_another_vocabulary_raises(by_module):
    hidden, weight, bias, targets, _ = inputs()
    reference, _ = a_reference(vocabulary=V + 1)
    with pytest.raises(SepoError, match=r"returns 38 logits per token and the policy's 37.*set a ref_model with"):
        compute(by_module, hidden, weight, bias, targets, chunk_tokens=4, reference=reference)


@pytest.mark.parametrize("by_module", [True, False], ids=["module", "linear"])
def test_no_tokens_give_empty_statistics_with_a_graph(by_module):
    hidden, weight, bias, targets, _ = inputs(n=0)
    reference, _ = a_reference(n=0)
    actual = compute(by_module, hidden, weight, bias, targets, chunk_tokens=4, reference=reference, with_p2=True)
    assert [len(values) for values in (actual.logps, actual.kl, actual.log_sum_p2)] == [0, 0, 0]
    grads = torch.autograd.grad(actual.kl.sum() + actual.logps.sum(), (hidden, weight, bias))
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trainable"])
@pytest.mark.parametrize("by_module", [True, False], ids=["module", "linear"])
def test_memory_for_the_backward_pass_does_not_grow_with_the_vocabulary(by_module, frozen):
    tokens, vocabulary = 256, 20_000
    hidden = torch.randn(tokens, H, requires_grad=True)
    weight = torch.randn(vocabulary, H, requires_grad=not frozen)
    targets = torch.randint(vocabulary, (tokens,))
    ref_weight = torch.randn(vocabulary, H)
    reference = ReferenceStates(torch.randn(tokens, H), lambda states: states @ ref_weight.T)
    kept = []

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr():  # the head exists anyway
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        compute(by_module, hidden, weight, None, targets, chunk_tokens=16, reference=reference, with_p2=True)
    assert 0 < sum(kept) <= tokens * (2 * H + 2)
