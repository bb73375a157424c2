"""Log-probabilities and entropies of sampled tokens under the distribution that they were sampled from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sepo.forward.chunked import at_least_float32, default_chunk_tokens
from sepo.forward.head import Head, run_through_head


@dataclass(frozen=True)
class SampledTokens:
    """Values of tokens under a model at a temperature.

    Attributes:
        logps: [B, T - 1] log-probabilities in nats, 0 where not wanted.
        entropies: [B, T - 1] entropies of the distributions in nats, without gradient, 0 where not wanted; None if they
            were not requested.
    """

    logps: Tensor
    entropies: Tensor | None


def sampled_tokens(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    labels: Tensor,
    wanted: Tensor,
    temperature: float = 1.0,
    with_entropies: bool = False,
    chunk_tokens: int | None = None,
) -> SampledTokens:
    """Compute log-probabilities, and entropies, of the softmax of the logits divided by a temperature.

    Slow twin: ``torch.log_softmax(logits.float() / temperature, -1)``.

    Args:
        model: a causal language model, wrapped or not.
        inputs: the model's inputs (``input_ids`` [B, T], ``attention_mask``), padded on either side.
        labels: token ids, [B, T], unshifted.
        wanted: bool, [B, T - 1], shifted: entry t requests the values of the token at position t + 1.
        temperature: sampling temperature, above 0.
        with_entropies: whether to compute entropies.
        chunk_tokens: number of tokens whose logits exist at a time; None for 64 MiB of logits.

    Raises:
        SepoError: see ``run_through_head``.
    """

    def compute(head: Head, states: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        head = replace(head, transform=head.transform.at_temperature(temperature))
        logps = head.log_probs(states, targets, chunk_tokens=chunk_tokens)
        return (logps, entropies_of(head, states, chunk_tokens)) if with_entropies else (logps,)

    logps, *more = run_through_head(model, inputs, labels=labels, wanted=wanted, compute=compute)
    return SampledTokens(logps, more[0] if more else None)


@torch.no_grad()
def entropies_of(head: Head, states: Tensor, chunk_tokens: int | None) -> Tensor:
    """Return the entropy of the distribution at each state, [N] from [N, H], in chunks."""
    size = default_chunk_tokens(head.vocabulary) if chunk_tokens is None else chunk_tokens
    found = []
    for chunk in states.detach().split(size):
        logits = head.transform(at_least_float32(head.forward(chunk)))
        found.append(torch.special.entr(torch.softmax(logits, dim=-1)).sum(-1))
    return torch.cat(found) if found else at_least_float32(states.new_zeros(0))
