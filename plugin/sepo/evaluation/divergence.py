"""Answers under a policy and its reference: log-probabilities, and the exact KL between the two at every answer token.

The estimator of the KL: at each response position the whole next-token distributions are compared,
KL(policy || reference) = sum_v p_v (log p_v - log q_v) with p the policy's, exactly and over the full vocabulary, and
the positions' divergences are summed over an answer. This is the divergence of RLHF's objective (MinorDPO,
arXiv 2408.09834, Eq. 1); TDPO's and the training metric ``kl/*_full`` have the other direction. Over answers that the
policy itself sampled at temperature 1 the sum's mean is an unbiased estimate of the KL of whole answers, with less
variance than log-ratios of the sampled tokens have; over given answers it says how far the policy has moved there.

Slow twin: two ``log_softmax`` over full logits. Here the logits of one chunk of tokens exist at a time.
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
from sepo.forward.layout import PairLayout
from sepo.forward.sequences import (
    ScoredSequence,
    ScoringModel,
    item_batches,
    padded_batch,
    pair_units,
    scoring_log_probs,
)
from sepo.forward.sharing import batch_layout, layout_for, refusal_of
from sepo.forward.statistics import reference_log_probs, selected_statistics


@dataclass(frozen=True)
class AnswerSums:
    """Sums over the response tokens of each answer.

    Args:
        tokens: how many there are, int64 [N].
        logps: log-probability under the policy in nats, float64 [N].
        reference_logps: the same under the reference; None where there is none.
        kl: KL(policy || reference) over the vocabulary in nats, float64 [N]; None where there is no reference.
    """

    tokens: np.ndarray
    logps: np.ndarray
    reference_logps: np.ndarray | None = None
    kl: np.ndarray | None = None

    def part(self, rows: slice) -> AnswerSums:
        """The sums of some of the answers."""
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
    """Run answers through a policy and its reference.

    Args:
        policy: the policy.
        sequences: prompts with their answers, in any order.
        reference: what the policy is compared with, or None; it may be the same weights in another state. The policy
            itself has a KL of 0 and is run once.
        batch_tokens: tokens per batch, prompts included; it changes no result beyond rounding.
        pairs: whether the second half of the sequences are the first half's partners, which share their prompts: these
            are computed once where both models allow it.
        chunk_tokens: tokens whose logits exist at a time; None for 64 MiB of logits.
        on_batch: called with the number of sequences after each batch (a progress bar).

    Returns:
        The sums of each answer, in the order given.

    Raises:
        SepoError: policy and reference have vocabularies of different sizes, or a model gives no finite numbers.
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
    """Of one batch the policy's and the reference's log-probabilities and the KL, [response_tokens] for each answer."""
    inputs, labels, wanted = padded_batch(sequences, next(policy.model.parameters()).device)
    layout = _common_layout(policy, reference, inputs, wanted) if pairs else None
    tokens: dict[str, Any] = {"labels": labels, "wanted": wanted, "chunk_tokens": chunk_tokens, "layout": layout}
    with policy.active():
        logps, states = reference_log_probs(policy.model, inputs, **tokens)
    with reference.active():
        # TDPO's KL(q || p) with the roles exchanged: q is the policy here, and p the reference.
        other = selected_statistics(reference.model, inputs, reference=states, **tokens)
    kept = wanted.cpu()
    return [
        [row[places] for row, places in zip(values.cpu(), kept, strict=True)]
        for values in (logps, other.logps, cast(Tensor, other.kl))
    ]


def _common_layout(
    policy: ScoringModel, reference: ScoringModel, inputs: dict[str, Tensor], wanted: Tensor
) -> PairLayout | None:
    """The layout of a batch that both models can run; the padded batch where one of them cannot."""
    layout = batch_layout(inputs, wanted)
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
            f"the {what} of answer {row} (of {len(sums)}) is {sums[row, column]}: the model's weights are broken, or "
            "their numbers leave the range of its precision; look at the weights, or load it in another one."
        )


def _check_vocabularies(policy: nn.Module, reference: nn.Module) -> None:
    ours, theirs = _vocabulary(policy), _vocabulary(reference)
    if ours != theirs:
        raise SepoError(
            f"the policy's head gives {ours:,} logits per token and the reference's {theirs:,}, but a KL over the "
            "vocabulary needs one vocabulary: name a ref_model with the policy's, or none."
        )


def _vocabulary(model: nn.Module) -> int:
    head = cast(Any, causal_lm(model)).get_output_embeddings()
    return int(getattr(head, "out_features", 0) or head.weight.shape[0])
