"""Degeneration of generated text, as of an over-optimized policy: repeated tokens, few distinct words, truncation.

MinorDPO (arXiv 2408.09834) reports it for DPO, whose penalty on rejected responses never stops: "the DPO optimized
model may start to generate repeated token". All statistics are computed on token ids, so compare only policies that
share a tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sepo.evaluation.estimates import estimate
from sepo.intervals import Estimate

DISTINCT = (1, 2, 3)
"""Values of n for distinct-n."""
REPEATED = (2, 3, 4)
"""Values of n for repeated n-grams."""


@dataclass(frozen=True)
class Degeneration:
    """Statistics of generated answers, without their end of turn.

    Args:
        answers: number of answers.
        tokens: mean length in tokens.
        median_tokens: median length in tokens.
        distinct: by n, ``distinct_ngrams`` over all answers; None if they have no n-gram.
        repeated: by n, mean ``repeated_ngrams`` over the answers that have an n-gram; None if none has.
        truncated: share of answers that were truncated.
        empty: number of answers without a token.
    """

    answers: int
    tokens: Estimate
    median_tokens: float
    distinct: dict[int, float | None]
    repeated: dict[int, Estimate | None]
    truncated: Estimate
    empty: int


def ngrams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """Return all n-grams of a sequence of tokens.

    >>> ngrams([1, 2, 3], 2)
    [(1, 2), (2, 3)]
    """
    return [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]


def distinct_ngrams(answers: Iterable[Sequence[int]], n: int) -> float | None:
    """Compute the share of distinct n-grams among all n-grams of all answers (distinct-n; Li et al. 2016, 1510.03055).

    It decreases with the amount of text, so compare policies on the same prompts and at similar lengths.

    >>> distinct_ngrams([[1, 2], [1, 2, 3]], 2), distinct_ngrams([[1]], 2)
    (0.6666666666666666, None)

    Args:
        answers: token ids.
        n: length of the n-grams.

    Returns:
        A share in (0, 1]; None if there is no n-gram.
    """
    found = [gram for ids in answers for gram in ngrams(ids, n)]
    return len(set(found)) / len(found) if found else None


def repeated_ngrams(ids: Sequence[int], n: int) -> float | None:
    """Compute the share of an answer's n-grams that occur earlier in it (seq-rep-n; Welleck et al. 2020, 1908.04319).

    >>> repeated_ngrams([7, 7, 7, 7, 7], 2), repeated_ngrams([1, 2, 3], 2), repeated_ngrams([1], 2)
    (0.75, 0.0, None)

    Args:
        ids: token ids of one answer.
        n: length of the n-grams.

    Returns:
        A share in [0, 1); None if there is no n-gram.
    """
    found = ngrams(ids, n)
    return 1 - len(set(found)) / len(found) if found else None


def degeneration(answers: Sequence[Sequence[int]], finished: Sequence[bool], *, seed: int = 0) -> Degeneration:
    """Compute the statistics of generated answers.

    Args:
        answers: token ids of each answer, without the stop token; at least one answer.
        finished: whether each answer ended with a stop token.
        seed: seed of the bootstrap.
    """
    lengths = [len(ids) for ids in answers]
    repeated = {}
    for n in REPEATED:
        shares = [repeated_ngrams(ids, n) for ids in answers]
        repeated[n] = estimate([share for share in shares if share is not None], seed=seed)
    tokens, truncated = estimate(lengths, seed=seed), estimate([not ended for ended in finished], seed=seed)
    assert tokens is not None and truncated is not None  # noqa: PT018
    return Degeneration(
        answers=len(answers),
        tokens=tokens,
        median_tokens=float(np.median(lengths)),
        distinct={n: distinct_ngrams(answers, n) for n in DISTINCT},
        repeated=repeated,
        truncated=truncated,
        empty=lengths.count(0),
    )
