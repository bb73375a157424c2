"""A frozen convolution that keeps no input equals torch's own."""

import pytest
import torch
from torch import nn

from sepo.forward.frozen_convolution import lean_convolution
from sepo.memory.live import LiveBytes


def frozen(**options):
    torch.manual_seed(0)
    return nn.Conv1d(6, 6, 4, groups=6, padding=3, **options).requires_grad_(False)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("options", [{"bias": False}, {"bias": True}, {"dilation": 2, "stride": 3}])
def test_values_and_gradients(options, autocast):
    conv = frozen(**options)
    x = torch.randn(2, 6, 11, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        pairs = [function(x) for function in (lean_convolution(conv), conv)]
    assert "Convolution" in type(pairs[0].grad_fn).__name__
    assert type(pairs[0].grad_fn) is not type(pairs[1].grad_fn)
    torch.testing.assert_close(*pairs, rtol=0, atol=0)
    weights = torch.randn_like(pairs[0])
    torch.testing.assert_close(*(torch.autograd.grad(each, x, weights)[0] for each in pairs))


def test_the_input_is_not_kept():
    conv = frozen()
    found = []
    for function in (lean_convolution(conv), conv):
        live = LiveBytes()
        with live:
            x = torch.zeros(1, requires_grad=True) + torch.randn(1, 6, 500)  # a leaf of this size would be kept
            output = function(x)
            size = x.numel() * x.element_size()
            del x
            found.append((live.now - output.numel() * output.element_size()) / size)
    kept, by_torch = found
    assert kept < 0.1
    assert by_torch > 0.9


def test_other_convolutions_run_their_own_forward():
    trained = frozen().requires_grad_(True)
    circular, same = frozen(padding_mode="circular"), nn.Conv1d(6, 6, 3, padding="same").requires_grad_(False)
    other = frozen()
    other.forward = lambda x: x
    sharded = frozen()
    sharded.weight.ds_id = 1
    for conv in (trained, circular, same, other, sharded):
        assert lean_convolution(conv) == conv.forward
