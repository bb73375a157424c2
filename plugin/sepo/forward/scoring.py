"""Token scores of whole rows under frozen models: batched under a token budget, the head on response tokens only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sepo.errors import SepoError
from sepo.forward.head import selected_log_probs
from sepo.forward.sharing import batch_layout, layout_for
from sepo.tokens.scores import oracle_scores

DEFAULT_BATCH_TOKENS = 8192
"""Padded tokens per scoring batch when the user sets none."""


@dataclass(frozen=True)
class ScoredSequence:
    """One prompt with one response, as token ids.

    Args:
        input_ids: prompt and response, unpadded.
        response_start: index of the first response token that can be scored (at least 1: a token without a
            predecessor has no log-probability).

    Raises:
        SepoError: a start outside the row.
    """

    input_ids: Sequence[int]
    response_start: int

    def __post_init__(self) -> None:
        if not 1 <= self.response_start <= len(self.input_ids):
            raise SepoError(
                f"response_start is {self.response_start} in a row of {len(self.input_ids)} tokens, expected 1 to "
                f"{len(self.input_ids)}: the first token of a row has no log-probability."
            )

    @property
    def response_tokens(self) -> int:
        """Number of tokens that get a score."""
        return len(self.input_ids) - self.response_start


@dataclass(frozen=True)
class ScoringModel:
    """A frozen model and the state it must be in while it scores.

    Args:
        model: a causal language model in eval mode.
        active: returns a context manager under which the model is the one meant (an adapter on or off).
    """

    model: nn.Module
    active: Callable[[], AbstractContextManager[object]]


def length_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield indices of similar length whose padded batch keeps to ``budget`` tokens; a longer sequence goes alone."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batch: list[int] = []
    for index in order:
        longest = lengths[batch[0]] if batch else lengths[index]
        if batch and longest * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def score_batches(
    lengths: Sequence[int],
    budget: int,
    score: Callable[[list[int]], Sequence[Tensor]],
    *,
    on_batch: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """Score items in batches of similar length.

    Args:
        lengths: of the items, in tokens.
        budget: padded tokens per batch.
        score: gives one row of numbers for each of a batch's indices.
        on_batch: called with the number of items after each batch (a progress bar).

    Returns:
        Each item's row, in the order of ``lengths``, float32.
    """
    rows: list[Tensor] = [torch.empty(0)] * len(lengths)
    for batch in length_batches(lengths, budget):
        for index, row in zip(batch, score(batch), strict=True):
            rows[index] = row.float()
        if on_batch is not None:
            on_batch(len(batch))
    return rows


def score_sequences(
    sequences: Sequence[ScoredSequence],
    budget: int,
    score: Callable[[list[ScoredSequence]], Sequence[Tensor]],
    *,
    pairs: bool,
    on_batch: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """Score sequences in batches of similar length, the two of a pair in one batch.

    Args:
        sequences: any number.
        budget: tokens per batch, of a pair without what the second repeats of the first.
        score: gives one row of numbers for each sequence of a batch; of pairs, the first halves come first.
        pairs: whether the second half of the sequences are the first half's partners, in their order.
        on_batch: called with the number of sequences after each batch (a progress bar).

    Returns:
        Each sequence's row, float32.
    """
    count = len(sequences) // 2 if pairs else len(sequences)
    units = [(index, index + count) if pairs else (index,) for index in range(count)]

    def scored(batch: list[int]) -> list[Tensor]:
        order = [units[unit][side] for side in range(1 + pairs) for unit in batch]
        rows = list(score([sequences[index] for index in order]))
        return [torch.cat(rows[place :: len(batch)]) for place in range(len(batch))]

    def told(done: int) -> None:
        if on_batch is not None:
            on_batch(done * (1 + pairs))

    joined = score_batches([_tokens(sequences, unit) for unit in units], budget, scored, on_batch=told)
    result: list[Tensor] = [torch.empty(0)] * len(sequences)
    for unit, row in zip(units, joined, strict=True):
        for index, part in zip(unit, row.split([sequences[index].response_tokens for index in unit]), strict=True):
            result[index] = part
    return result


def _tokens(sequences: Sequence[ScoredSequence], unit: Sequence[int]) -> int:
    """Tokens of a sequence, or of a pair whose common beginning is computed once."""
    ids = [sequences[index].input_ids for index in unit]
    shared = next(
        (place for place, tokens in enumerate(zip(*ids, strict=False)) if tokens[0] != tokens[-1]), min(map(len, ids))
    )
    return sum(map(len, ids)) - (shared if len(ids) == 2 else 0)


def _pad(sequences: Sequence[ScoredSequence], device: torch.device) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    width = max(len(sequence.input_ids) for sequence in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    attention = torch.zeros(len(sequences), width, dtype=torch.long)
    wanted = torch.zeros(len(sequences), width - 1, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        length = len(sequence.input_ids)
        ids[row, :length] = torch.as_tensor(sequence.input_ids, dtype=torch.long)
        attention[row, :length] = 1
        wanted[row, sequence.response_start - 1 : length - 1] = True
    ids = ids.to(device)
    return {"input_ids": ids, "attention_mask": attention.to(device)}, ids, wanted.to(device)


@torch.no_grad()
def response_log_probs(
    model: nn.Module, sequences: Sequence[ScoredSequence], *, chunk_tokens: int | None = None, pairs: bool = False
) -> list[Tensor]:
    """Log-probabilities of the response tokens of one batch, the head on these tokens only.

    Args:
        model: a causal language model in eval mode.
        sequences: the batch.
        chunk_tokens: tokens whose logits exist at a time; None for 64 MiB of logits.
        pairs: whether the second half are the first half's partners; what a pair begins with is then computed once,
            and no padding is, where the model allows it.

    Returns:
        For each sequence its log-probabilities in nats, on the CPU, [response_tokens].
    """
    inputs, labels, wanted = _pad(sequences, next(model.parameters()).device)
    layout = layout_for(model, inputs, batch_layout(inputs, wanted)) if pairs else None
    logps = selected_log_probs(
        model, inputs, labels=labels, wanted=wanted, chunk_tokens=chunk_tokens, layout=layout
    ).cpu()
    return [row[kept] for row, kept in zip(logps, wanted.cpu(), strict=True)]


def scoring_log_probs(
    scoring: ScoringModel, sequences: Sequence[ScoredSequence], *, chunk_tokens: int | None = None, pairs: bool = False
) -> list[Tensor]:
    """``response_log_probs`` of a scoring model, in the state in which it scores."""
    with scoring.active():
        return response_log_probs(scoring.model, sequences, chunk_tokens=chunk_tokens, pairs=pairs)


class OracleScorer:
    """log pi_oracle - log pi_oracle_base of every response token (SePO, Eq. 24).

    Args:
        oracle: the model trained with preference optimization.
        base: the model that it was trained from.
        batch_tokens: tokens per batch, prompt and response counted.
        chunk_tokens: tokens whose logits exist at a time; None for 64 MiB of logits.
    """

    def __init__(
        self, *, oracle: ScoringModel, base: ScoringModel, batch_tokens: int, chunk_tokens: int | None = None
    ) -> None:
        self.oracle, self.base = oracle, base
        self.batch_tokens, self.chunk_tokens = batch_tokens, chunk_tokens

    def score(
        self,
        sequences: Sequence[ScoredSequence],
        *,
        pairs: bool = False,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[Tensor]:
        """Score sequences.

        Args:
            sequences: any number, in any order.
            pairs: whether the second half of them are the first half's partners, which share their prompts.
            on_batch: called with the number of sequences after each batch (a progress bar).

        Returns:
            For each, in the order given, its scores in nats: float32 on the CPU, [response_tokens].
        """

        def score(batch: list[ScoredSequence]) -> list[Tensor]:
            oracle, base = (
                scoring_log_probs(model, batch, chunk_tokens=self.chunk_tokens, pairs=pairs)
                for model in (self.oracle, self.base)
            )
            return [oracle_scores(ours, theirs) for ours, theirs in zip(oracle, base, strict=True)]

        return score_sequences(sequences, self.batch_tokens, score, pairs=pairs, on_batch=on_batch)


class LogProbScorer:
    """log pi of every response token under one model: a reference that is run once, before training.

    Args:
        model: the model.
        batch_tokens: tokens per batch, prompt and response counted.
        chunk_tokens: tokens whose logits exist at a time; None for 64 MiB of logits.
    """

    def __init__(self, model: ScoringModel, *, batch_tokens: int, chunk_tokens: int | None = None) -> None:
        self.model, self.batch_tokens, self.chunk_tokens = model, batch_tokens, chunk_tokens

    def score(
        self,
        sequences: Sequence[ScoredSequence],
        *,
        pairs: bool = False,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[Tensor]:
        """Score sequences.

        Args:
            sequences: any number, in any order.
            pairs: whether the second half of them are the first half's partners, which share their prompts.
            on_batch: called with the number of sequences after each batch (a progress bar).

        Returns:
            For each, in the order given, its log-probabilities in nats: float32 on the CPU, [response_tokens].
        """

        def score(batch: list[ScoredSequence]) -> list[Tensor]:
            return scoring_log_probs(self.model, batch, chunk_tokens=self.chunk_tokens, pairs=pairs)

        return score_sequences(sequences, self.batch_tokens, score, pairs=pairs, on_batch=on_batch)
