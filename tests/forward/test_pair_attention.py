"""Attention over pairs in blocks equals attention under the full mask, and makes no tensor of that mask's size."""

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.bias import CausalBias, causal_lower_right
from torch.utils._python_dispatch import _disable_current_modes

from sepo.forward import attention
from sepo.forward.attention import Reach, attend_pairs
from sepo.memory.live import LiveBytes
from tests.support.models import layout_of

HEADS, GROUPS, WIDTH = 6, 2, 8


def states_of(tokens, *, dtype=torch.float64, heads=HEADS, groups=GROUPS, device="cpu"):
    draw = torch.Generator().manual_seed(0) if device == "cpu" else None
    return tuple(
        torch.randn(1, count, tokens, WIDTH, dtype=dtype, device=device, generator=draw).requires_grad_()
        for count in (heads, heads // groups, heads // groups)
    )


def full_mask(layout, window):
    """The mask of the whole row, from the definition of a pair's span."""
    mask = torch.zeros(layout.tokens, layout.tokens, dtype=torch.bool)
    for span in layout.spans:
        shared = list(range(span.start, span.start + span.shared))
        for first, stop in ((span.start + span.shared, span.split), (span.split, span.end)):
            sequence = [*shared, *range(first, stop)]
            for place, token in enumerate(sequence):
                mask[token, sequence[: place + 1][-window if window else 0 :]] = True
    return mask


def attend(layout, states, **more):
    piece = functools.partial(attention._fused_piece, "sdpa")
    return attend_pairs(nn.Identity(), *states, layout, piece=piece, **more)


PAIRS = [(5, 9, 14), (0, 3, 20), (17, 1, 2), (4, 6, 0), (12, 11, 1)]


@pytest.mark.parametrize("window", [None, 1, 2, 6, 13, 40])
@pytest.mark.parametrize("rows", [1, 4, 7, 64])
def test_blocks_equal_the_full_mask(rows, window, monkeypatch):
    monkeypatch.setattr(attention, "_BLOCK_ROWS", {"cpu": rows})
    layout = layout_of(*PAIRS)
    results = []
    for way in ("blocks", "full"):
        states = states_of(layout.tokens)
        if way == "blocks":
            output = attend(layout, states, sliding_window=window, scaling=0.7)
        else:
            mask = full_mask(layout, window)
            output = F.scaled_dot_product_attention(*states, attn_mask=mask, scale=0.7, enable_gqa=True).transpose(1, 2)
        weights = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(1))
        results.append([output, *torch.autograd.grad((output * weights).sum(), states)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@given(
    queries=st.integers(1, 30),
    before=st.integers(0, 30),
    window=st.none() | st.integers(1, 40),
    rows=st.integers(1, 20),
    lower_right=st.booleans(),
)
def test_blocks_cover_every_query_with_exactly_its_keys(queries, before, window, rows, lower_right):
    keys = before + queries
    reached = torch.zeros(queries, keys, dtype=torch.bool)
    layout = layout_of((before, queries, queries))
    covered = 0
    for own, seen, block in Reach(queries, keys, window).blocks(rows, lower_right=lower_right):
        assert own.start == covered
        covered = own.stop
        assert (block.queries, block.keys) == (own.stop - own.start, seen.stop - seen.start)
        if block.window is None and (lower_right or block.queries == block.keys):
            mask = causal_lower_right(block.queries, block.keys)._materialize()
        else:
            assert block.queries <= rows
            mask = attention._dense(layout, block, rows, torch.device("cpu"))
        assert mask.any(0).all()  # no key is computed in vain
        reached[own, seen] = mask
    assert covered == queries
    distance = torch.arange(before, keys)[:, None] - torch.arange(keys)
    assert torch.equal(reached, (distance >= 0) & (distance < (window or keys)))


@pytest.fixture
def kernel(monkeypatch):
    """A stand-in for the kernel of a device that is not there; the masks and dtypes that it is given."""
    calls = []

    def sdpa(query, key, value, *, attn_mask, is_causal, **more):
        assert attn_mask is None or tuple(query.shape[2:3] + key.shape[2:3]) == (
            (attn_mask.seq_len_q, attn_mask.seq_len_kv) if isinstance(attn_mask, CausalBias) else attn_mask.shape
        )
        assert (attn_mask is None) == is_causal
        calls.append((attn_mask, {state.dtype for state in (query, key, value)}))
        return torch.empty_like(query)

    def lower_right(*shape):
        with _disable_current_modes():  # it has no data, and cannot be made from a tensor that is fake or counted
            return causal_lower_right(*shape)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", sdpa)
    monkeypatch.setattr(attention, "causal_lower_right", lower_right)
    return calls


def peak_of(pairs, *, device, **more):
    """Return the bytes of the queries of a row and the peak of its attention."""
    with FakeTensorMode(), torch.no_grad():
        layout = layout_of(*pairs)
        states = states_of(layout.tokens, dtype=torch.bfloat16, heads=1, groups=1, device=device)
        live = LiveBytes()
        live.leave_out(states)
        with live:
            attend(layout, states, **more)
        return states[0].nbytes, live.peak


@pytest.mark.parametrize("rejected", [8192, 32768])
def test_the_rectangle_has_no_mask_tensor_on_cuda(kernel, rejected):
    states, peak = peak_of([(1024, 512, rejected)], device="cuda")
    masks = [mask for mask, _ in kernel]
    assert masks[0] is None
    assert [type(mask) for mask in masks[1:]] == [CausalBias]
    assert peak <= 5 * states  # keys, values and outputs of the pieces, and the row's output; a mask is 36 times larger


@pytest.mark.parametrize("rejected", [8192, 32768])
def test_a_window_has_one_mask_of_a_block_on_cuda(kernel, rejected):
    window = 1024
    states, peak = peak_of([(1024, 4096, rejected), (1024, 512, rejected)], device="cuda", sliding_window=window)
    block = 2048 * (2048 + window - 1)
    masks = [mask for mask, _ in kernel if mask is not None and not isinstance(mask, CausalBias)]
    assert len(masks) >= 2 * (rejected // 2048)
    assert len({mask.untyped_storage()._cdata for mask in masks}) == 1
    assert peak <= 6 * states + 2 * block


@pytest.mark.parametrize("rejected", [8192, 32768])
def test_other_devices_have_a_mask_of_a_block(kernel, rejected):
    for device, rows in (("cpu", 256), ("meta", 2048)):
        states, peak = peak_of([(1024, 512, rejected)], device=device)
        assert peak <= 5 * states + 2 * rows * (1024 + rejected)


@pytest.fixture
def autocast_of_cuda():
    """What ``torch.autocast`` sets, which does nothing on a machine without CUDA."""
    torch.set_autocast_enabled("cuda", True)
    yield
    torch.set_autocast_enabled("cuda", False)


@pytest.mark.usefixtures("autocast_of_cuda")
def test_mixed_precision_reaches_the_rectangle_on_cuda(kernel):
    """Rotary embeddings of float32 weights make float32 queries and keys beside half-precision values."""
    with FakeTensorMode():
        layout = layout_of((4, 2, 3))
        query, key, value = states_of(layout.tokens, dtype=torch.float32, device="cuda")
        attend(layout, (query, key, value.to(torch.get_autocast_dtype("cuda"))))
    assert [dtypes for mask, dtypes in kernel if mask is not None] == [{torch.get_autocast_dtype("cuda")}]
