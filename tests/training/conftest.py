"""Models that compute in float64 throughout, so that slow twins can be compared to the last digits."""

import pytest
import torch
from transformers import LlamaForCausalLM


@pytest.fixture(autouse=True)
def _exact(exact_norms):
    """Every test here needs it."""


def load(world, name="policy"):
    """Return a model of the tiny world in float64."""
    return LlamaForCausalLM.from_pretrained(world / name, dtype=torch.float64).eval()


@pytest.fixture(scope="module")
def policy(world):
    return load(world)


@pytest.fixture(scope="module")
def reference(world):
    return load(world, "base")
