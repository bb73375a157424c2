"""Evaluation of one policy on held-out pairs and prompts."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from sepo.evaluation.correctness import Verdict, verdicts
from sepo.evaluation.degeneration import Degeneration, degeneration
from sepo.evaluation.divergence import AnswerSums, answer_sums
from sepo.evaluation.estimates import estimate
from sepo.evaluation.generation import Decoding
from sepo.evaluation.preference import Margins, Preference, margins, preference
from sepo.evaluation.prompts import AnsweredTurn, ChatFormat, PromptSet, converse
from sepo.forward.sequences import DEFAULT_BATCH_TOKENS, ScoredSequence, ScoringModel
from sepo.intervals import Estimate
from sepo.judges import Judge


@dataclass(frozen=True)
class HeldOut:
    """Held-out pairs as token ids.

    Args:
        name: name of the data set.
        chosen: prompts with chosen responses.
        rejected: prompts with rejected responses, in the same order.
    """

    name: str
    chosen: Sequence[ScoredSequence]
    rejected: Sequence[ScoredSequence]


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation besides models and data.

    Args:
        decoding: settings for generating answers.
        seed: seed of drawn prompts and bootstrap intervals.
        batch_tokens: tokens per batch; results do not depend on it beyond rounding.
        judge: judge of the answers to held-out prompts; None without one.
    """

    decoding: Decoding = field(default_factory=Decoding)
    seed: int = 0
    batch_tokens: int = DEFAULT_BATCH_TOKENS
    judge: Judge | None = None


@dataclass(frozen=True)
class Divergence:
    """KL(policy || reference) over a set of responses.

    Args:
        per_token: mean over all their tokens, in nats.
        per_answer: mean over responses of the sum over their tokens, in nats.
        tokens: number of tokens.
        rows: sum over the tokens of each response, in nats, float64 [N].
    """

    per_token: Estimate
    per_answer: Estimate
    tokens: int
    rows: np.ndarray


@dataclass(frozen=True)
class SetResult:
    """The answers of a policy to one set of prompts.

    Args:
        answers: answers by prompt and turn.
        statistics: statistics of all answers.
        kl: KL over the answers, their stop tokens included; None without a reference.
        verdicts: verdict by prompt; None without a judge, and for the questions of a benchmark.
    """

    answers: Sequence[Sequence[AnsweredTurn]]
    statistics: Degeneration
    kl: Divergence | None
    verdicts: Sequence[Verdict] | None = None


@dataclass(frozen=True)
class PolicyResult:
    """All results of a policy.

    Args:
        margins: margins of the pairs, by measure.
        preference: accuracy and margin, by measure.
        mean_logps: by side, the mean summed log-probability of a response in nats.
        kl: KL by side; None without a reference.
        sets: answers by name of the prompts.
        seconds: duration of each part.
    """

    margins: Margins
    preference: Mapping[str, Preference]
    mean_logps: Mapping[str, float]
    kl: Mapping[str, Divergence] | None
    sets: Mapping[str, SetResult]
    seconds: Mapping[str, float]


def evaluate_policy(
    policy: ScoringModel,
    *,
    reference: ScoringModel | None,
    heldout: HeldOut,
    prompts: Sequence[PromptSet],
    chat_format: ChatFormat,
    settings: EvaluationSettings,
    name: str,
) -> PolicyResult:
    """Evaluate a policy.

    Args:
        policy: the policy.
        reference: the reference of the KL, or None.
        heldout: the pairs.
        prompts: prompts to be answered; may be empty.
        chat_format: template and tokenizer of the policy.
        settings: all other settings.
        name: name of the policy in progress bars.

    Raises:
        SepoError: policy and reference have vocabularies of different sizes, or a prompt cannot be answered.
    """
    started = time.monotonic()
    pairs = [*heldout.chosen, *heldout.rejected]
    with progress(f"{name}: held-out responses", len(pairs)) as advance:
        sums = answer_sums(
            policy, pairs, reference=reference, batch_tokens=settings.batch_tokens, pairs=True, on_batch=advance
        )
    count = len(heldout.chosen)
    sides = {"chosen": sums.part(slice(count)), "rejected": sums.part(slice(count, None))}
    found = margins(**sides)
    seconds = {"heldout": time.monotonic() - started, "generations": 0.0}
    started = time.monotonic()
    sets = {each.name: _answered(policy, reference, each, chat_format, settings, name) for each in prompts}
    seconds["generations"] = time.monotonic() - started
    kl = {side: _divergence(part, settings.seed) for side, part in sides.items()}
    return PolicyResult(
        margins=found,
        preference=preference(found, seed=settings.seed),
        mean_logps={side: float(part.logps.mean()) for side, part in sides.items()},
        kl={side: part for side, part in kl.items() if part is not None} or None,
        sets=sets,
        seconds=seconds,
    )


def _answered(
    policy: ScoringModel,
    reference: ScoringModel | None,
    prompts: PromptSet,
    chat_format: ChatFormat,
    settings: EvaluationSettings,
    name: str,
) -> SetResult:
    turns = sum(len(prompt.question.turns) for prompt in prompts.prompts)
    with progress(f"{name}: answers to {prompts.name}", turns) as advance:
        conversations = converse(
            policy, prompts.prompts, chat_format, decoding=settings.decoding, batch_tokens=settings.batch_tokens,
            on_batch=advance,
        )  # fmt: skip
    answers = [answer for conversation in conversations for answer in conversation]
    statistics = degeneration(
        [answer.generated.answer for answer in answers],
        [answer.generated.finished for answer in answers],
        seed=settings.seed,
    )
    judged = None
    if settings.judge is not None and prompts.benchmark is None:
        judged = verdicts(settings.judge, prompts.prompts, answers)
    if reference is None:
        return SetResult(conversations, statistics, None, judged)
    sequences = [
        ScoredSequence([*answer.prompt_ids, *answer.generated.ids], len(answer.prompt_ids)) for answer in answers
    ]
    with progress(f"{name}: KL over {prompts.name}", turns) as advance:
        sums = answer_sums(policy, sequences, reference=reference, batch_tokens=settings.batch_tokens, on_batch=advance)
    return SetResult(conversations, statistics, _divergence(sums, settings.seed), judged)


def _divergence(sums: AnswerSums, seed: int) -> Divergence | None:
    if sums.kl is None:
        return None
    per_token, per_answer = estimate(sums.kl, weights=sums.tokens, seed=seed), estimate(sums.kl, seed=seed)
    assert per_token is not None and per_answer is not None  # noqa: PT018
    return Divergence(per_token, per_answer, int(np.sum(sums.tokens)), sums.kl)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar of responses inside the context, and return the function that advances it."""
    with tqdm(total=total, desc=title, unit="response", file=sys.stderr) as bar:

        def advance(count: int) -> None:
            bar.update(count)

        yield advance
