"""A summary of sampled responses: how many finished, and how many were right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sepo.evaluation.estimates import estimate
from sepo.intervals import Estimate, share


@dataclass(frozen=True)
class SampleSummary:
    """Shares of sampled responses. Intervals of means are over prompts, whose responses are drawn together.

    Args:
        prompts: number of prompts.
        responses: number of responses.
        tokens: mean length of a response in tokens, without its stop token.
        finished: share of the responses that ended with a stop token.
        judged: number of prompts with an expected answer, to which the next three refer.
        right: mean over prompts of the share of responses with the right value; None if no prompt was judged, as below.
        right_and_finished: the same, for responses that also ended with a stop token.
        any_right: share of the prompts with at least one right response.
    """

    prompts: int
    responses: int
    tokens: Estimate
    finished: Estimate
    judged: int
    right: Estimate | None
    right_and_finished: Estimate | None
    any_right: Estimate | None


def sample_summary(rows: Sequence[Mapping[str, Any]], *, seed: int = 0) -> SampleSummary:
    """Summarize lines of ``samples.jsonl``.

    Args:
        rows: the lines, at least one.
        seed: seed of the bootstrap.
    """
    judged = [row["responses"] for row in rows if row["responses"][0].get("right") is not None]
    tokens = estimate([_mean(row["responses"], "tokens") for row in rows], seed=seed)
    finished = estimate([_mean(row["responses"], "finished") for row in rows], seed=seed)
    assert tokens is not None and finished is not None  # noqa: PT018
    both = [float(np.mean([each["right"] and each["finished"] for each in responses])) for responses in judged]
    return SampleSummary(
        prompts=len(rows),
        responses=sum(len(row["responses"]) for row in rows),
        tokens=tokens,
        finished=finished,
        judged=len(judged),
        right=estimate([_mean(responses, "right") for responses in judged], seed=seed),
        right_and_finished=estimate(both, seed=seed),
        any_right=share(sum(any(each["right"] for each in responses) for responses in judged), len(judged))
        if judged
        else None,
    )


def _mean(responses: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(np.mean([each[name] for each in responses]))
