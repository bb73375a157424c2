"""Whether generated answers are right: verdicts of a judge, their shares, and what training changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sepo.evaluation.estimates import estimate
from sepo.evaluation.prompts import AnsweredTurn, Prompt
from sepo.intervals import Estimate, share
from sepo.judges import Judge

MEASURES = ("right", "finished", "right_and_finished")
"""The shares of ``Correctness``. A value can be right in an answer that was truncated, so the two are counted apart."""


@dataclass(frozen=True)
class Verdict:
    """What is counted for one answer.

    Args:
        id: number of the prompt's row.
        right: whether the answer has the expected value; None without an expected answer.
        finished: whether the answer ended with a stop token.
    """

    id: int | str
    right: bool | None
    finished: bool


@dataclass(frozen=True)
class Correctness:
    """Shares over the answers to prompts that have an expected answer, with Wilson's intervals.

    Args:
        judged: number of these answers.
        without_expected: number of the other answers, which no share includes.
        right: share with the right value; None if no answer was judged, as the next two.
        finished: share that ended with a stop token.
        right_and_finished: share with both.
    """

    judged: int
    without_expected: int
    right: Estimate | None
    finished: Estimate | None
    right_and_finished: Estimate | None


def verdicts(judge: Judge, prompts: Sequence[Prompt], answers: Sequence[AnsweredTurn]) -> list[Verdict]:
    """Judge one answer to each prompt.

    Args:
        judge: the judge.
        prompts: the prompts.
        answers: their answers.

    Raises:
        SepoError: the judge failed.
    """
    return [
        Verdict(
            prompt.question.id,
            None if prompt.expected is None else judge(answer.text, prompt.expected),
            answer.generated.finished,
        )
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def correctness(found: Sequence[Verdict]) -> Correctness:
    """Compute the shares of verdicts."""
    judged = _judged(found)
    shares = {name: share(int(values.sum()), len(judged)) if judged else None for name, values in _columns(judged)}
    return Correctness(len(judged), len(found) - len(judged), **shares)


def correctness_change(
    before: Sequence[Verdict], after: Sequence[Verdict], *, seed: int = 0
) -> dict[str, Estimate | None]:
    """Compute the differences of the shares, after minus before, paired by prompt, with bootstrap intervals.

    Args:
        before: verdicts of the initial policy.
        after: verdicts of the trained policy on the same prompts.
        seed: seed of the bootstrap.
    """
    first, second = dict(_columns(_judged(before))), dict(_columns(_judged(after)))
    return {name: estimate(second[name] - first[name], seed=seed) for name in MEASURES}


def _judged(found: Sequence[Verdict]) -> list[Verdict]:
    return [verdict for verdict in found if verdict.right is not None]


def _columns(judged: Sequence[Verdict]) -> list[tuple[str, np.ndarray]]:
    """Return each measure as a number per verdict, float64 [N]."""
    right, finished = (
        np.array([getattr(verdict, name) for verdict in judged], dtype=np.float64) for name in MEASURES[:2]
    )
    return list(zip(MEASURES, (right, finished, right * finished), strict=True))
