"""Sums over the whole vocabulary of one chunk of tokens: KL(ref || policy) and the sum of squared probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sepo.errors import SepoError


@dataclass(frozen=True)
class ReferenceStates:
    """What a reference's distributions over the vocabulary are made from, chunk by chunk.

    Args:
        hidden: the reference's hidden states before its head, [N, H'] (its H' may be another than the policy's).
        logits: its head and what follows it, [n, H'] to a new [n, V] in float32 or wider; valid at any time, also when
            the reference is no longer in place.
    """

    hidden: Tensor
    logits: Callable[[Tensor], Tensor]

    def log_probs(self, rows: slice, *, vocabulary: int) -> Tensor:
        """Log-probabilities [n, V] of the rows, without gradient.

        Raises:
            SepoError: the reference has another vocabulary.
        """
        with torch.no_grad():
            logits = self.logits(self.hidden[rows])
            if logits.shape[-1] != vocabulary:
                raise SepoError(
                    f"the reference's head gives {logits.shape[-1]:,} logits per token and the policy's "
                    f"{vocabulary:,}, but a KL over the vocabulary needs one vocabulary: name a ref_model with the "
                    "policy's, or an objective without a KL term (dpo)."
                )
            return logits.sub_(torch.logsumexp(logits, -1, keepdim=True))


@dataclass(frozen=True)
class TokenStatistics:
    """One number per token, in nats, float32 (float64 for a float64 model).

    Attributes:
        logps: log-probability of the target token; carries gradient.
        kl: KL(ref || policy) = sum_v q_v (log q_v - log p_v), q the reference's distribution (TDPO, arXiv 2404.11999);
            carries gradient to the policy. None where no reference was given.
        log_sum_p2: log sum_v p_v^2 (WPO, arXiv 2406.11827), without gradient. None where it was not asked for.
    """

    logps: Tensor
    kl: Tensor | None = None
    log_sum_p2: Tensor | None = None


def log_sum_p2(logits: Tensor, log_norm: Tensor) -> Tensor:
    """log sum_v p_v^2 from logits [n, V] and their log-sum-exp [n], [n]."""
    # Normalised before it is doubled: beside logits in the ten thousands float32 has no digits left to cancel.
    return torch.logsumexp(2.0 * (logits - log_norm.unsqueeze(-1)), -1)


def kl_divergence(log_q: Tensor, logits: Tensor, log_norm: Tensor) -> Tensor:
    """KL(q || p) of each row, [n]; exactly 0 where q is p bit for bit."""
    return (log_q.exp() * (log_q - (logits - log_norm.unsqueeze(-1)))).sum(-1)


def kl_gradient(log_q: Tensor, logits: Tensor, log_norm: Tensor) -> Tensor:
    """d KL(q || p) / d logits = p - q, [n, V]; overwrites ``log_q``."""
    return (logits - log_norm.unsqueeze(-1)).exp_().sub_(log_q.exp_())
