"""Tiny models, in float64 throughout, and responses of many lengths."""

import contextlib
import random

import pytest
import torch
from transformers import LlamaForCausalLM

from sepo.forward.sequences import ScoredSequence, ScoringModel


@pytest.fixture(autouse=True)
def _exact(exact_norms):
    """Every test here needs it."""


@pytest.fixture(scope="session")
def exact_models(world):
    """Two models of one architecture, float64."""
    return tuple(
        LlamaForCausalLM.from_pretrained(world / name, dtype=torch.float64).eval() for name in ("oracle", "base")
    )


@pytest.fixture
def scoring():
    """Wrap a model as a scoring model that needs no change of state."""
    return lambda model, active=contextlib.nullcontext: ScoringModel(model, active)


@pytest.fixture(scope="session")
def answers():
    """Chosen responses, then their rejected partners: prompts of 1 to 20 tokens, responses of 1 to 30."""
    draw = random.Random(3)
    sides = [[], []]
    for _ in range(9):
        prompt = [draw.randrange(3, 300) for _ in range(draw.randrange(1, 20))]
        for side in sides:
            side.append(
                ScoredSequence([*prompt, *(draw.randrange(3, 300) for _ in range(draw.randrange(1, 30)))], len(prompt))
            )
    return [*sides[0], *sides[1]]
