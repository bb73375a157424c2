"""Log-probabilities of responses under a policy and its reference, and the exact KL between them at every token.

At each response position the full next-token distributions are compared,
KL(policy || reference) = sum_v p_v (log p_v - log q_v) with p of the policy, exactly and over the full vocabulary, and
the divergences are summed over the positions of a response. This is the divergence of RLHF's objective (MinorDPO,
arXiv 2408.09834, Eq. 1); TDPO and the training metric ``kl/*_full`` use the other direction. Over answers that the
policy sampled at temperature 1, the mean of the sum is an unbiased estimate of the KL of whole answers, with lower
variance than log-ratios of the sampled tokens; over given responses, it measures how far the policy has moved on them.

Slow twin: two ``log_softmax`` over full logits. Here only the logits of one chunk of tokens are materialized at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from sepo.errors import SepoError
from sepo.forward.head import causal_lm
from sepo.forward.sequences import (
    ScoredSequence,
    ScoringModel,
    item_batches,
    padded_batch,
    pair_units,
    scoring_log_probs,
)
from sepo.forward.shared_prompt import PairLayout
from sepo.forward.sharing_support import batch_layout, layout_for, refusal_of
from sepo.forward.statistics import reference_log_probs, selected_statistics


@dataclass(frozen=True)
class AnswerSums:
    """Sums over the tokens of each response.

    Args:
        tokens: number of tokens, int64 [N].
        logps: log-probability under the policy in nats, float64 [N].
        reference_logps: the same under the reference; None without a reference.
        kl: KL(policy || reference) over the vocabulary in nats, float64 [N]; None without a reference.
    """

    tokens: np.ndarray
    logps: np.ndarray
    reference_logps: np.ndarray | None = None
    kl: np.ndarray | None = None

    def part(self, rows: slice) -> AnswerSums:
        """Return the sums of a slice of the responses."""
        return AnswerSums(
            self.tokens[rows],
            self.logps[rows],
            None if self.reference_logps is None else self.reference_logps[rows],
            None if self.kl is None else self.kl[rows],
        )


def answer_sums(
    policy: ScoringModel,
    sequences: Sequence[ScoredSequence],
    *,
    reference: ScoringModel | None,
    batch_tokens: int,
    pairs: bool = False,
    chunk_tokens: int | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> AnswerSums:
    """Compute sums over responses under a policy and its reference.

    Args:
        policy: the policy.
        sequences: prompts with their responses, in any order.
        reference: the reference, or None; it may be the same weights in another state. If it is ``policy`` itself, the
            KL is 0 and the model is run once.
        batch_tokens: tokens per batch, prompts included; results do not depend on it beyond rounding.
        pairs: whether the second half of the sequences are the partners of the first half and share their prompts,
            which are then computed once if both models support it.
        chunk_tokens: number of tokens whose logits are materialized at a time; None for 64 MiB of logits.
        on_batch: called with the number of sequences after each batch (for a progress bar).

    Returns:
        The sums of each response, in the order of ``sequences``.

    Raises:
        SepoError: policy and reference have vocabularies of different sizes, or a model returns values that are not
            finite.
    """
    if reference is policy:
        alone = answer_sums(
            policy, sequences, reference=None, batch_tokens=batch_tokens, pairs=pairs, chunk_tokens=chunk_tokens,
            on_batch=on_batch,
        )  # fmt: skip
        return AnswerSums(alone.tokens, alone.logps, alone.logps, np.zeros_like(alone.logps))
    models = [policy] if reference is None else [policy, reference]
    if reference is not None:
        _check_vocabularies(policy.model, reference.model)
    pairs = pairs and all(refusal_of(causal_lm(model.model)) is None for model in models)
    ids = [sequence.input_ids for sequence in sequences]
    lengths, units = pair_units(ids) if pairs else ([len(row) for row in ids], None)
    sums = np.zeros((len(sequences), 3 if reference is not None else 1))
    for items in item_batches(lengths, batch_tokens, units=units):
        batch = [sequences[item] for item in items]
        if reference is None:
            numbers = [scoring_log_probs(policy, batch, chunk_tokens=chunk_tokens, pairs=pairs)]
        else:
            numbers = _both(policy, reference, batch, chunk_tokens=chunk_tokens, pairs=pairs)
        sums[items] = [[row.double().sum().item() for row in rows] for rows in zip(*numbers, strict=True)]
        if on_batch is not None:
            on_batch(len(items))
    _check_finite(sums)
    tokens = np.asarray([sequence.response_tokens for sequence in sequences], dtype=np.int64)
    return AnswerSums(tokens, *sums.T)


@torch.no_grad()
def _both(
    policy: ScoringModel,
    reference: ScoringModel,
    sequences: Sequence[ScoredSequence],
    *,
    chunk_tokens: int | None,
    pairs: bool,
) -> list[list[Tensor]]:
    """Return, for one batch, log-probabilities of policy and reference and the KL, [response_tokens] per response."""
    inputs, labels, mask = padded_batch(sequences, next(policy.model.parameters()).device)
    layout = _common_layout(policy, reference, inputs, mask) if pairs else None
    tokens: dict[str, Any] = {"labels": labels, "wanted": mask, "chunk_tokens": chunk_tokens, "layout": layout}
    with policy.active():
        logps, states = reference_log_probs(policy.model, inputs, **tokens)
    with reference.active():
        # TDPO's KL(q || p) with the roles exchanged: here q is the policy and p the reference.
        other = selected_statistics(reference.model, inputs, reference=states, **tokens)
    kept = mask.cpu()
    return [
        [row[places] for row, places in zip(values.cpu(), kept, strict=True)]
        for values in (logps, other.logps, cast(Tensor, other.kl))
    ]


def _common_layout(
    policy: ScoringModel, reference: ScoringModel, inputs: dict[str, Tensor], mask: Tensor
) -> PairLayout | None:
    """Return a layout of the batch that both models support; the padded batch if one of them does not support pairs."""
    layout = batch_layout(inputs, mask)
    for model in (policy, reference):
        with model.active():
            layout = layout_for(model.model, inputs, layout)
    return layout


def _check_finite(sums: np.ndarray) -> None:
    wrong = np.argwhere(~np.isfinite(sums))
    if len(wrong):
        row, column = wrong[0]
        what = ("log-probability under the policy", "log-probability under the reference", "KL")[column]
        raise SepoError(
            f"the {what} of response {row} (of {len(sums)}) is {sums[row, column]}, expected a finite number: the "
            "model's weights are broken, or its values overflow; check the weights, or load it in another precision."
        )


def _check_vocabularies(policy: nn.Module, reference: nn.Module) -> None:
    size, reference_size = _vocabulary(policy), _vocabulary(reference)
    if size != reference_size:
        raise SepoError(
            f"the policy's head gives {size:,} logits per token and the reference's {reference_size:,}, but a KL over "
            "the vocabulary needs a shared one: set a ref_model with the policy's vocabulary, or none."
        )


def _vocabulary(model: nn.Module) -> int:
    head = cast(Any, causal_lm(model)).get_output_embeddings()
    return int(getattr(head, "out_features", 0) or head.weight.shape[0])
