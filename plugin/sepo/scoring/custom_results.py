"""Calls to token scorers that read responses and their texts (built-in or registered), with checked results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from sepo.errors import SepoError
from sepo.forward.sequences import score_batches
from sepo.objectives import RowTokens, TokenScorer
from sepo.selection.scorer_inputs import BatchScorer


def scores_of_row(scorer: TokenScorer, row: RowTokens) -> np.ndarray:
    """Score one response with a scorer that has ``from_row``.

    Returns:
        float32, [response_tokens].

    Raises:
        SepoError: If the scorer does not return one finite number per token.
    """
    assert scorer.from_row is not None
    return _checked(scorer.name, scorer.from_row(row), row).numpy()


def scores_of_rows(
    name: str,
    scorer: BatchScorer,
    rows: Sequence[RowTokens],
    *,
    batch_tokens: int,
    on_batch: Callable[[int], None] | None = None,
) -> list[np.ndarray]:
    """Score responses with the function of a stored scorer, in batches of similar length.

    Args:
        name: name of the scorer.
        scorer: the function that the scorer's ``load`` returned.
        rows: the responses.
        batch_tokens: tokens per batch, padding included: each response with its prompt counts as the longest.
        on_batch: called with the number of responses after each batch (for a progress bar).

    Returns:
        For each response, in the given order: float32, [response_tokens].

    Raises:
        SepoError: If the scorer returns another number of responses, or not one finite number per token.
    """

    def score(batch: list[int]) -> list[Tensor]:
        given = [rows[index] for index in batch]
        scores = scorer(given)
        if len(scores) != len(given):
            raise SepoError(
                f"token scorer '{name}' returned {len(scores)} rows for a batch of {len(given)} responses, expected "
                "one for each, in order."
            )
        return [_checked(name, numbers, row) for numbers, row in zip(scores, given, strict=True)]

    lengths = [len(row.prompt_ids) + len(row.response_ids) for row in rows]
    return [numbers.numpy() for numbers in score_batches(lengths, batch_tokens, score, on_batch=on_batch)]


def _checked(name: str, given: Sequence[float], row: RowTokens) -> Tensor:
    numbers = torch.as_tensor(given, dtype=torch.float32)
    if numbers.shape != (len(row.response_ids),) or not bool(torch.isfinite(numbers).all()):
        raise SepoError(
            f"token scorer '{name}' returned scores of shape {list(numbers.shape)} for a "
            f"{'chosen' if row.chosen else 'rejected'} response of {len(row.response_ids)} tokens "
            f"({''.join(row.texts)[:40]!r}), expected one finite number per token."
        )
    return numbers
