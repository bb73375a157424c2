"""Memory of sampling a batch of responses besides the weights, measured by running it on tensors without data."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

import torch

from sepo.memory.live import LiveBytes, tensors_of
from sepo.memory.shapes import NOTHING_TRAINS, Trained, model_with, on_cpu_without_data, without_data
from sepo.memory.step import at_depth, autocast_of, in_depth

_SCORES = 5
"""Tensors of a step with a float32 number per row and vocabulary entry that exist at once: the logits, those divided by
the temperature, the noise, its logarithm, and their difference."""
_NUCLEUS = 4
"""Such tensors in addition with ``top_p`` below 1: the ordered logits, their places (int64), and probabilities."""


@dataclass(frozen=True)
class SampledBatch:
    """A batch of responses that are sampled together.

    Args:
        rows: number of responses.
        prompt: tokens of each prompt, padding included.
        new_tokens: maximum tokens of a response.
        nucleus: whether ``top_p`` is below 1.
    """

    rows: int
    prompt: int
    new_tokens: int
    nucleus: bool = False


@dataclass(frozen=True)
class GenerationBytes:
    """Bytes of one process while a batch is sampled, besides the weights.

    Args:
        cache: keys and values of all tokens of the batch at its end, or the states that a model keeps instead.
        activations: the largest number of bytes in addition: activations of the prompts, or logits and copies of one
            step.
    """

    cache: int
    activations: int


def largest_batches(budget: int, *, prompt: int, new_tokens: int, nucleus: bool = False) -> tuple[SampledBatch, ...]:
    """Return the batches that can need most memory under a budget of tokens.

    Args:
        budget: tokens per batch, padding and new tokens included; a longer sample is a batch of its own.
        prompt: tokens of the longest prompt.
        new_tokens: maximum tokens of a response.
        nucleus: whether ``top_p`` is below 1.

    Returns:
        The batch of longest prompts, whose activations are largest, and that of prompts of one token, which has most
        rows.

    Example:
        >>> [(batch.rows, batch.prompt) for batch in largest_batches(64, prompt=15, new_tokens=7)]
        [(2, 15), (8, 1)]
    """
    return tuple(
        SampledBatch(max(1, budget // (length + new_tokens)), length, new_tokens, nucleus) for length in (prompt, 1)
    )


def generation_bytes(
    config: Any,
    batch: SampledBatch,
    dtype: torch.dtype,
    *,
    trained: Trained = NOTHING_TRAINS,
    autocast: torch.dtype | None = None,
) -> GenerationBytes:
    """Return the peak bytes of sampling a batch, without weights.

    Two depths are run and the results extrapolated, as each layer has its own cache.

    Args:
        config: the model's transformers configuration.
        batch: the batch.
        dtype: dtype of the frozen weights.
        trained: the trainable weights, if the model is a policy in training.
        autocast: the dtype of autocast, or None.
    """
    cache, prompts, step = in_depth(
        config, lambda depth: _measured(*at_depth(config, depth), batch, dtype, trained, autocast)
    )
    scores = 4 * batch.rows * int(config.vocab_size) * (_SCORES + (_NUCLEUS if batch.nucleus else 0))
    return GenerationBytes(cache, max(prompts, step + scores) - cache)


@functools.lru_cache(maxsize=64)
def _measured(
    config: str, kind: Any, batch: SampledBatch, dtype: torch.dtype, trained: Trained, autocast: torch.dtype | None
) -> tuple[int, int, int]:
    """Return the bytes of the cache at the end, the peak of the prompts, and that of the last step with the cache."""
    model = model_with(kind.from_dict(json.loads(config)), dtype, trained)
    with without_data(model), torch.no_grad():
        model = on_cpu_without_data(model).eval()
        live = LiveBytes()
        live.leave_out(tensors_of(model))
        with live:
            before = _prefilled(model, batch.rows, batch.prompt, autocast)
            prompts = live.peak
            del before
            # The last step: the cache without the last two tokens, one of which it adds, which copies a layer's.
            outputs = _prefilled(model, batch.rows, max(1, batch.prompt + batch.new_tokens - 2), autocast)
            past = outputs.past_key_values
            del outputs
            live.peak = live.now
            ids = torch.zeros(batch.rows, 1, dtype=torch.long)
            with autocast_of(autocast):
                model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
            return live.now, prompts, live.peak


def _prefilled(model: Any, rows: int, tokens: int, autocast: torch.dtype | None) -> Any:
    ids = torch.zeros(rows, tokens, dtype=torch.long)
    with autocast_of(autocast):
        return model(input_ids=ids, use_cache=True, logits_to_keep=1)
