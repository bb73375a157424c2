"""Live bytes of tensors with and without data."""

import contextlib

import pytest
import torch

from sepo.memory.live import LiveBytes, tensors_of
from sepo.memory.shapes import without_data


@pytest.mark.parametrize("data", [contextlib.nullcontext, without_data], ids=["with data", "without data"])
def test_views_count_once_and_freed_tensors_not_at_all(data):
    with data():
        live = LiveBytes()
        with live:
            first = torch.zeros(100, dtype=torch.float32)
            assert live.now == 400
            view = first.view(10, 10)[:5]
            assert live.now == 400
            second = view + 1
            assert live.now == 600
            del first, view
            assert (live.now, live.peak) == (200, 600)
            del second
        assert (live.now, live.peak) == (0, 600)


def test_existing_tensors_are_excluded():
    weight = torch.nn.Linear(4, 3)
    live = LiveBytes()
    live.leave_out(tensors_of(weight))
    with live:
        transposed = weight.weight.t()
        assert live.now == 0
        output = weight(torch.zeros(2, 4))
        assert live.now >= output.numel() * 4
        assert transposed.shape == (4, 3)


def test_a_backward_pass_frees_its_saved_tensors():
    with without_data():
        live = LiveBytes()
        with live:
            x = torch.zeros(1000, requires_grad=True)
            y = (x.exp() * 2).sin().sum()
            held = live.now
            y.backward()
            del y
        assert held >= 3 * 4000
        assert live.now == 2 * 4000  # x and its gradient
