"""Sums over the whole vocabulary of one chunk of tokens: KL(ref || policy) and the sum of squared probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sepo.errors import SepoError


@dataclass(frozen=True)
class ReferenceStates:
    """The states from which a reference's distributions over the vocabulary are computed, chunk by chunk.

    Args:
        hidden: the reference's hidden states before its head, [N, H'] (H' may differ from the policy's H).
        logits: its head and the transform after it, [n, H'] to a new [n, V] in float32 or wider; valid at any time,
            also after the model has left its state as the reference.
    """

    hidden: Tensor
    logits: Callable[[Tensor], Tensor]

    def log_probs(self, rows: slice, *, vocabulary: int) -> Tensor:
        """Compute the log-probabilities [n, V] of the rows, without gradient.

        Raises:
            SepoError: if the reference has another vocabulary.
        """
        with torch.no_grad():
            logits = self.logits(self.hidden[rows])
            if logits.shape[-1] != vocabulary:
                raise SepoError(
                    f"the reference's head returns {logits.shape[-1]:,} logits per token and the policy's "
                    f"{vocabulary:,}, but a KL over the vocabulary needs equal vocabularies: set a ref_model with the "
                    "policy's, or an objective without a KL term (dpo)."
                )
            return logits.sub_(torch.logsumexp(logits, -1, keepdim=True))


@dataclass(frozen=True)
class TokenStatistics:
    """One number per token, in nats, float32 (float64 for a float64 model).

    Attributes:
        logps: log-probability of the target token; carries the gradient.
        kl: KL(ref || policy) = sum_v q_v (log q_v - log p_v), q the reference's distribution (TDPO, arXiv 2404.11999);
            carries the gradient of the policy. None if no reference was given.
        log_sum_p2: log sum_v p_v^2 (WPO, arXiv 2406.11827), without gradient. None if it was not requested.
        weights: weight of the token, computed from hidden states (OTPO, arXiv 2505.18720), not in nats and without
            gradient. None if it was not requested.
        router_losses: load-balancing loss of each pair, one number per two rows; carries the gradient. None if it was
            not requested.
    """

    logps: Tensor
    kl: Tensor | None = None
    log_sum_p2: Tensor | None = None
    weights: Tensor | None = None
    router_losses: Tensor | None = None

    def of(self, rows: list[int]) -> TokenStatistics:
        """Return the numbers of some rows of a batch, whose first half are the chosen responses of its pairs."""
        rest = (None if values is None else values[rows] for values in (self.kl, self.log_sum_p2, self.weights))
        kl, log_sum_p2, weights = rest
        pairs = rows[: len(rows) // 2]
        router_losses = None if self.router_losses is None else self.router_losses[pairs]
        return TokenStatistics(self.logps[rows], kl, log_sum_p2, weights, router_losses)


def log_sum_p2(logits: Tensor, log_norm: Tensor) -> Tensor:
    """Compute log sum_v p_v^2, [n], from logits [n, V] and their log-sum-exp [n]."""
    # Normalized before doubling: for logits in the tens of thousands float32 would lose the digits in the difference.
    return torch.logsumexp(2.0 * (logits - log_norm.unsqueeze(-1)), -1)


def kl_divergence(log_q: Tensor, logits: Tensor, log_norm: Tensor) -> Tensor:
    """Compute KL(q || p) of each row, [n]; exactly 0 if q and p are bitwise equal."""
    return (log_q.exp() * (log_q - (logits - log_norm.unsqueeze(-1)))).sum(-1)


def kl_gradient(log_q: Tensor, logits: Tensor, log_norm: Tensor) -> Tensor:
    """Compute d KL(q || p) / d logits = p - q, [n, V]; overwrites ``log_q``."""
    return (logits - log_norm.unsqueeze(-1)).exp_().sub_(log_q.exp_())
