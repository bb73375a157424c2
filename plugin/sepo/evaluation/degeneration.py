"""What a policy that was pushed too far writes: repeated tokens, few words, no end.

MinorDPO (arXiv 2408.09834) reports it of DPO whose penalty on rejected answers goes on: "the DPO optimized model may
start to generate repeated token". Everything here is counted over token ids, so it compares policies that share a
tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sepo.evaluation.estimates import Estimate, estimate

DISTINCT = (1, 2, 3)
"""Lengths n of distinct-n."""
REPEATED = (2, 3, 4)
"""Lengths of the n-grams whose repetition is counted."""


@dataclass(frozen=True)
class Degeneration:
    """Statistics of generated answers, their end of turn left out.

    Args:
        answers: how many there are.
        tokens: mean length in tokens.
        median_tokens: median length.
        distinct: by n, ``distinct_ngrams`` over all answers; None where they have no n-gram.
        repeated: by n, mean ``repeated_ngrams`` over the answers that have an n-gram; None where none has.
        truncated: share of answers that had not ended when they were cut off.
        empty: answers without a token.
    """

    answers: int
    tokens: Estimate
    median_tokens: float
    distinct: dict[int, float | None]
    repeated: dict[int, Estimate | None]
    truncated: Estimate
    empty: int


def ngrams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """Every run of n tokens.

    >>> ngrams([1, 2, 3], 2)
    [(1, 2), (2, 3)]
    """
    return [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]


def distinct_ngrams(answers: Iterable[Sequence[int]], n: int) -> float | None:
    """Different n-grams of all answers by all their n-grams (distinct-n; Li et al. 2016, arXiv 1510.03055).

    It falls with the amount of text, so compare it between policies that answered the same prompts at similar lengths.

    >>> distinct_ngrams([[1, 2], [1, 2, 3]], 2), distinct_ngrams([[1]], 2)
    (0.6666666666666666, None)

    Args:
        answers: token ids.
        n: length of the n-grams.

    Returns:
        A share in (0, 1]; None where there is no n-gram.
    """
    found = [gram for ids in answers for gram in ngrams(ids, n)]
    return len(set(found)) / len(found) if found else None


def repeated_ngrams(ids: Sequence[int], n: int) -> float | None:
    """Share of an answer's n-grams that came before in it (seq-rep-n; Welleck et al. 2020, arXiv 1908.04319).

    >>> repeated_ngrams([7, 7, 7, 7, 7], 2), repeated_ngrams([1, 2, 3], 2), repeated_ngrams([1], 2)
    (0.75, 0.0, None)

    Args:
        ids: token ids of one answer.
        n: length of the n-grams.

    Returns:
        A share in [0, 1); None where there is no n-gram.
    """
    found = ngrams(ids, n)
    return 1 - len(set(found)) / len(found) if found else None


def degeneration(answers: Sequence[Sequence[int]], finished: Sequence[bool], *, seed: int = 0) -> Degeneration:
    """The statistics of generated answers.

    Args:
        answers: token ids of each, without the token that ended it; at least one answer.
        finished: whether each ended by itself.
        seed: of the bootstrap.
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
