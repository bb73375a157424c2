"""Token scores of whole rows under frozen models, batched by a token budget, with the head on response tokens only."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sepo.errors import SepoError
from sepo.forward.head import causal_lm, selected_log_probs
from sepo.forward.sharing_support import batch_layout, layout_for, refusal_of
from sepo.selection.scores import oracle_scores

DEFAULT_BATCH_TOKENS = 8192
"""Default number of padded tokens per scoring batch."""


@dataclass(frozen=True)
class ScoredSequence:
    """One prompt with one response, as token ids.

    Args:
        input_ids: prompt and response, unpadded.
        response_start: index of the first response token that can be scored (at least 1: a token without a
            predecessor has no log-probability).

    Raises:
        SepoError: if the start is outside the row.
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
    """A frozen model and the state in which it scores.

    Args:
        model: a causal language model in eval mode.
        active: returns a context manager that puts the model in that state (an adapter enabled or disabled).
    """

    model: nn.Module
    active: Callable[[], AbstractContextManager[object]]


def length_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield indices of similar length whose padded batch has at most ``budget`` tokens; longer sequences go alone."""
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
    units: Sequence[Sequence[int]] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """Score items in batches of similar length.

    Args:
        lengths: of the units, in tokens.
        budget: tokens per batch, with each unit counted as long as the longest of its batch.
        score: returns one row of numbers for each item of a batch.
        units: groups of items that stay together, all of the same size; a batch has the first items of its units before
            the second ones. None for each item by itself.
        on_batch: called with the number of items after each batch (a progress bar).

    Returns:
        The row of each item, in item order, float32.
    """
    rows: list[Tensor] = [torch.empty(0)] * (len(lengths) if units is None else sum(map(len, units)))
    for items in item_batches(lengths, budget, units=units):
        for item, row in zip(items, score(items), strict=True):
            rows[item] = row.float()
        if on_batch is not None:
            on_batch(len(items))
    return rows


def item_batches(
    lengths: Sequence[int], budget: int, *, units: Sequence[Sequence[int]] | None = None
) -> Iterator[list[int]]:
    """Yield the items of each batch; the arguments are those of ``score_batches``."""
    units = [(index,) for index in range(len(lengths))] if units is None else units
    for batch in length_batches(lengths, budget):
        yield [item for place in zip(*(units[unit] for unit in batch), strict=True) for item in place]


def pair_units(ids: Sequence[Sequence[int]]) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the lengths and units for ``score_batches`` of pairs whose common prefixes are computed once.

    Args:
        ids: token ids of the rows; row i of the second half is paired with row i of the first half.

    Returns:
        The tokens of each pair, and the pairs as row indices.
    """
    count = len(ids) // 2
    units = [(index, index + count) for index in range(count)]
    return [_pair_tokens(ids[first], ids[second]) for first, second in units], units


def _pair_tokens(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the number of tokens of a pair whose common prefix is computed once."""
    same = itertools.takewhile(lambda tokens: tokens[0] == tokens[1], zip(first, second, strict=False))
    return len(first) + len(second) - sum(1 for _ in same)


def padded_batch(sequences: Sequence[ScoredSequence], device: torch.device) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Collate sequences into a right-padded batch.

    Args:
        sequences: the rows.
        device: device of the tensors.

    Returns:
        The inputs of a model's forward, the labels [R, T], unshifted, and the wanted positions, bool [R, T - 1],
        shifted: those of the response tokens.
    """
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
    """Compute the log-probabilities of the response tokens of one batch; the head runs on these tokens only.

    Args:
        model: a causal language model in eval mode.
        sequences: the batch.
        chunk_tokens: number of tokens whose logits exist at a time; None for 64 MiB of logits.
        pairs: whether sequence i of the second half is paired with sequence i of the first half; if the model supports
            it, the common prefix of a pair is then computed once, and padding not at all.

    Returns:
        The log-probabilities of each sequence in nats, on the CPU, [response_tokens].
    """
    inputs, labels, wanted = padded_batch(sequences, next(model.parameters()).device)
    layout = layout_for(model, inputs, batch_layout(inputs, wanted)) if pairs else None
    logps = selected_log_probs(
        model, inputs, labels=labels, wanted=wanted, chunk_tokens=chunk_tokens, layout=layout
    ).cpu()
    return [row[kept] for row, kept in zip(logps, wanted.cpu(), strict=True)]


def scoring_log_probs(
    scoring: ScoringModel, sequences: Sequence[ScoredSequence], *, chunk_tokens: int | None = None, pairs: bool = False
) -> list[Tensor]:
    """Return ``response_log_probs`` of a scoring model, in the state in which it scores."""
    with scoring.active():
        return response_log_probs(scoring.model, sequences, chunk_tokens=chunk_tokens, pairs=pairs)


class SequenceScorer(ABC):
    """Base class of scorers with one number for every response token, in batches under a token budget.

    Args:
        models: the scoring models whose log-probabilities are combined.
        batch_tokens: tokens per batch, including the prompts.
        chunk_tokens: number of tokens whose logits exist at a time; None for 64 MiB of logits.
    """

    def __init__(self, *models: ScoringModel, batch_tokens: int, chunk_tokens: int | None = None) -> None:
        self.models, self.batch_tokens, self.chunk_tokens = models, batch_tokens, chunk_tokens

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
            pairs: whether sequence i of the second half is paired with sequence i of the first half, with the same
                prompt, which is computed once if the models support it.
            on_batch: called with the number of sequences after each batch (a progress bar).

        Returns:
            The numbers of each, in input order, in nats: float32 on the CPU, [response_tokens].
        """
        pairs = pairs and all(refusal_of(causal_lm(model.model)) is None for model in self.models)

        def score(items: list[int]) -> Sequence[Tensor]:
            return self.batch_scores([sequences[item] for item in items], pairs=pairs)

        ids = [sequence.input_ids for sequence in sequences]
        if not pairs:
            return score_batches([len(row) for row in ids], self.batch_tokens, score, on_batch=on_batch)
        lengths, units = pair_units(ids)
        return score_batches(lengths, self.batch_tokens, score, units=units, on_batch=on_batch)

    def batch_scores(self, batch: Sequence[ScoredSequence], *, pairs: bool) -> list[Tensor]:
        """Return the scores of one batch, [response_tokens] each; ``pairs`` as in ``response_log_probs``."""
        return self.combined(
            *(scoring_log_probs(m, batch, chunk_tokens=self.chunk_tokens, pairs=pairs) for m in self.models)
        )

    @abstractmethod
    def combined(self, *logps: list[Tensor]) -> list[Tensor]:
        """Combine the log-probabilities, in nats, of a batch under each model to its scores, [response_tokens] each."""


class OracleScorer(SequenceScorer):
    """Scorer of log pi_oracle - log pi_oracle_base for every response token (SePO, Eq. 24).

    Args:
        oracle: the model trained with preference optimization.
        base: the model that it was trained from.
        batch_tokens: as ``SequenceScorer``.
        chunk_tokens: as ``SequenceScorer``.
    """

    def __init__(
        self, *, oracle: ScoringModel, base: ScoringModel, batch_tokens: int, chunk_tokens: int | None = None
    ) -> None:
        super().__init__(oracle, base, batch_tokens=batch_tokens, chunk_tokens=chunk_tokens)

    def combined(self, *logps: list[Tensor]) -> list[Tensor]:
        """Return the differences of the log-probabilities."""
        return [oracle_scores(oracle, base) for oracle, base in zip(*logps, strict=True)]


class LogProbScorer(SequenceScorer):
    """Scorer of log pi for every response token under one model: a reference that is run once, before training.

    Args:
        model: the model.
        batch_tokens: as ``SequenceScorer``.
        chunk_tokens: as ``SequenceScorer``.
    """

    def __init__(self, model: ScoringModel, *, batch_tokens: int, chunk_tokens: int | None = None) -> None:
        super().__init__(model, batch_tokens=batch_tokens, chunk_tokens=chunk_tokens)

    def combined(self, *logps: list[Tensor]) -> list[Tensor]:
        """Return the log-probabilities."""
        return logps[0]
