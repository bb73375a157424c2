"""Memory of a pass over sampled responses besides the weights, measured by running it on tensors without data."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sepo.forward.head import Head, known_transforms
from sepo.forward.sampled import entropies_of
from sepo.memory.shapes import model_with, on_cpu_without_data, without_data
from sepo.memory.step import Pass, at_depth, autocast_of, in_depth, live_bytes, with_checkpointing

Reads = Literal["logps", "entropies", "logits"]
"""What a pass computes of its tokens: log-probabilities in chunks, these and the entropies, or the log-probabilities
from the logits of all tokens at once, as TRL's trainer does before a second step on the same responses."""


@dataclass(frozen=True)
class Responses:
    """A batch of sampled responses with their prompts, each padded to the longest.

    Args:
        rows: number of responses.
        prompt: tokens of the longest prompt.
        new_tokens: tokens of the longest response.
        selected: number of tokens that need a log-probability.
    """

    rows: int
    prompt: int
    new_tokens: int
    selected: int

    @property
    def tokens(self) -> int:
        """Number of tokens of the batch, padding included."""
        return self.rows * (self.prompt + self.new_tokens)


def responses_of(rows: int, *, prompt: int, new_tokens: int, share: float = 1.0) -> Responses:
    """Return a batch of the longest responses.

    Args:
        rows: number of responses.
        prompt: tokens of each prompt.
        new_tokens: tokens of each response.
        share: share of the response tokens that need a log-probability.
    """
    return Responses(rows, prompt, new_tokens, max(1, round(share * rows * new_tokens)))


def responses_bytes(
    config: Any, batch: Responses, how: Pass, *, temperature: float = 1.0, reads: Reads = "logps"
) -> int:
    """Return the peak bytes of activations and all other tensors of a pass, without weights and gradients.

    Unlike ``step_bytes``, each response has a row of its own with its prompt. Depths are as there.

    Args:
        config: the model's transformers configuration.
        batch: the responses.
        how: the settings of the pass.
        temperature: sampling temperature, by which the logits are divided.
        reads: what is computed.

    Returns:
        Bytes of one process.
    """
    (found,) = in_depth(
        config, lambda depth: (_measured(*at_depth(config, depth), batch, how, temperature, reads),), grows=how.backward
    )
    return found


@functools.lru_cache(maxsize=64)
def _measured(config: str, kind: Any, batch: Responses, how: Pass, temperature: float, reads: Reads) -> int:
    model = model_with(kind.from_dict(json.loads(config)), how.dtype, how.trained)
    with without_data(model):
        model = on_cpu_without_data(model).train(how.backward)
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        module = inner.get_output_embeddings()
        transform, _ = known_transforms(inner)
        head = Head(module, module.forward, True, transform.at_temperature(temperature), {})
        ids = torch.zeros(batch.rows, batch.prompt + batch.new_tokens, dtype=torch.long)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with_checkpointing(inner, how)
        live = live_bytes(model)
        with live, torch.set_grad_enabled(how.backward):
            with autocast_of(how.autocast):
                hidden = inner.get_decoder()(**inputs, use_cache=False)[0]
                values = _values(head, hidden, batch, how, reads)
            if how.backward:
                values.sum().backward()
        return live.peak


def _values(head: Head, hidden: Tensor, batch: Responses, how: Pass, reads: Reads) -> Tensor:
    """Return the log-probabilities, [N]; the values of tensors without data are arbitrary."""
    if reads == "logits":
        logits = head.forward(hidden[:, -batch.new_tokens - 1 :]).float() / 1.0
        # as torch.logsumexp computes it, with a tensor that a dispatch mode does not see
        return torch.cat([(row - row.amax(-1, keepdim=True)).exp_().sum(-1) for row in logits])
    rows = torch.arange(batch.selected) // -(-batch.selected // batch.rows)
    columns = batch.prompt - 1 + torch.arange(batch.selected) % batch.new_tokens
    states, targets = hidden[rows, columns], torch.zeros(batch.selected, dtype=torch.long)
    logps = head.log_probs(states, targets, chunk_tokens=how.head_chunk_tokens)
    if reads == "entropies":
        entropies_of(head, states, how.head_chunk_tokens)
    return logps
