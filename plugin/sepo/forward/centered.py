"""Scores without what a model expects at a position: both models' whole distributions, without keeping their logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sepo.forward.sampled import sampled_tokens
from sepo.forward.sequences import LogProbScorer, OracleScorer, ScoredSequence, padded_batch
from sepo.forward.sharing_support import batch_layout, layout_for
from sepo.forward.statistics import reference_log_probs, selected_statistics
from sepo.selection.estimators import centered_log_probs, centered_scores
from sepo.selection.scores import oracle_scores


class CenteredOracleScorer(OracleScorer):
    """Scorer of log pi_oracle - log pi_base + KL(base || oracle) for every response token (``centered_scores``).

    For each batch the base runs first, and its hidden states before the head are kept; the distributions of both models
    are computed from hidden states, a chunk of tokens at a time, in the pass over the oracle's head. The arguments are
    those of ``OracleScorer``.
    """

    @torch.no_grad()
    def batch_scores(self, batch: Sequence[ScoredSequence], *, pairs: bool) -> list[Tensor]:
        """Return the centered scores of one batch."""
        oracle, base = self.models
        inputs, labels, wanted = padded_batch(batch, next(oracle.model.parameters()).device)
        layout = batch_layout(inputs, wanted) if pairs else None
        tokens: dict[str, Any] = {"labels": labels, "wanted": wanted, "chunk_tokens": self.chunk_tokens}
        with base.active():
            of_base, states = reference_log_probs(
                base.model, inputs, layout=layout_for(base.model, inputs, layout), **tokens
            )
        with oracle.active():
            found = selected_statistics(
                oracle.model, inputs, reference=states, layout=layout_for(oracle.model, inputs, layout), **tokens
            )
        assert found.kl is not None
        scores = centered_scores(oracle_scores(found.logps, of_base), found.kl).cpu()
        return [row[kept] for row, kept in zip(scores, wanted.cpu(), strict=True)]


class CenteredLogProbScorer(LogProbScorer):
    """Scorer of log pi + H for every response token under one model (``centered_log_probs``).

    The arguments are those of ``LogProbScorer``.
    """

    @torch.no_grad()
    def batch_scores(self, batch: Sequence[ScoredSequence], *, pairs: bool) -> list[Tensor]:
        """Return the centered log-probabilities of one batch."""
        (scoring,) = self.models
        inputs, labels, wanted = padded_batch(batch, next(scoring.model.parameters()).device)
        with scoring.active():
            found = sampled_tokens(
                scoring.model, inputs, labels=labels, wanted=wanted, with_entropies=True, chunk_tokens=self.chunk_tokens
            )
        assert found.entropies is not None
        rows = centered_log_probs(found.logps, found.entropies).cpu()
        return [row[kept] for row, kept in zip(rows, wanted.cpu(), strict=True)]
