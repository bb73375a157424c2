"""One policy on held-out pairs and prompts: everything that is measured of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from sepo.evaluation.degeneration import Degeneration, degeneration
from sepo.evaluation.divergence import AnswerSums, answer_sums
from sepo.evaluation.estimates import Estimate, estimate
from sepo.evaluation.generation import Decoding
from sepo.evaluation.preference import Margins, Preference, margins, preference
from sepo.evaluation.prompts import PromptSet, Spoken, Voice, converse
from sepo.forward.sequences import DEFAULT_BATCH_TOKENS, ScoredSequence, ScoringModel


@dataclass(frozen=True)
class HeldOut:
    """Held-out pairs as token ids.

    Args:
        name: of the data set.
        chosen: the better answers with their prompts.
        rejected: their partners.
    """

    name: str
    chosen: Sequence[ScoredSequence]
    rejected: Sequence[ScoredSequence]


@dataclass(frozen=True)
class EvaluationSettings:
    """What the figures depend on beside models and data.

    Args:
        decoding: of the generations.
        seed: of prompts that are drawn and of bootstrap intervals.
        batch_tokens: tokens per batch; no figure depends on it beyond rounding.
    """

    decoding: Decoding = field(default_factory=Decoding)
    seed: int = 0
    batch_tokens: int = DEFAULT_BATCH_TOKENS


@dataclass(frozen=True)
class Divergence:
    """KL(policy || reference) over some answers.

    Args:
        per_token: mean over all their tokens, in nats.
        per_answer: mean over answers of the sum over their tokens, in nats.
        tokens: how many tokens there are.
    """

    per_token: Estimate
    per_answer: Estimate
    tokens: int


@dataclass(frozen=True)
class SetResult:
    """A policy's answers to one set of prompts.

    Args:
        spoken: by prompt, then by turn.
        statistics: of all these answers.
        kl: over the same, the tokens that end them included; None where there is no reference.
    """

    spoken: Sequence[Sequence[Spoken]]
    statistics: Degeneration
    kl: Divergence | None


@dataclass(frozen=True)
class PolicyResult:
    """Everything that was measured of a policy.

    Args:
        margins: of the pairs, by measure.
        preference: by measure.
        mean_logps: by side, the mean summed log-probability of an answer in nats.
        kl: by side; None where there is no reference.
        sets: by the name of the prompts.
        seconds: what each part took.
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
    voice: Voice,
    settings: EvaluationSettings,
    name: str,
) -> PolicyResult:
    """Measure a policy.

    Args:
        policy: the policy.
        reference: what its KL is taken from, or None.
        heldout: the pairs.
        prompts: what it answers; may be empty.
        voice: how it reads and speaks.
        settings: the rest.
        name: what progress bars call it.

    Raises:
        SepoError: policy and reference have vocabularies of different sizes, or a prompt cannot be answered.
    """
    started = time.monotonic()
    pairs = [*heldout.chosen, *heldout.rejected]
    with _bar(f"{name}: held-out answers", len(pairs)) as advance:
        sums = answer_sums(
            policy, pairs, reference=reference, batch_tokens=settings.batch_tokens, pairs=True, on_batch=advance
        )
    count = len(heldout.chosen)
    sides = {"chosen": sums.part(slice(count)), "rejected": sums.part(slice(count, None))}
    found = margins(**sides)
    seconds = {"heldout": time.monotonic() - started, "generations": 0.0}
    started = time.monotonic()
    sets = {each.name: _answered(policy, reference, each, voice, settings, name) for each in prompts}
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
    voice: Voice,
    settings: EvaluationSettings,
    name: str,
) -> SetResult:
    turns = sum(len(prompt.question.turns) for prompt in prompts.prompts)
    with _bar(f"{name}: answers to {prompts.name}", turns) as advance:
        spoken = converse(
            policy, prompts.prompts, voice, decoding=settings.decoding, batch_tokens=settings.batch_tokens,
            on_batch=advance,
        )  # fmt: skip
    answers = [answer for conversation in spoken for answer in conversation]
    statistics = degeneration(
        [answer.generated.answer for answer in answers],
        [answer.generated.finished for answer in answers],
        seed=settings.seed,
    )
    if reference is None:
        return SetResult(spoken, statistics, None)
    sequences = [
        ScoredSequence([*answer.prompt_ids, *answer.generated.ids], len(answer.prompt_ids)) for answer in answers
    ]
    with _bar(f"{name}: KL over {prompts.name}", turns) as advance:
        sums = answer_sums(policy, sequences, reference=reference, batch_tokens=settings.batch_tokens, on_batch=advance)
    return SetResult(spoken, statistics, _divergence(sums, settings.seed))


def _divergence(sums: AnswerSums, seed: int) -> Divergence | None:
    if sums.kl is None:
        return None
    per_token, per_answer = estimate(sums.kl, weights=sums.tokens, seed=seed), estimate(sums.kl, seed=seed)
    assert per_token is not None and per_answer is not None  # noqa: PT018
    return Divergence(per_token, per_answer, int(np.sum(sums.tokens)))


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    with tqdm(total=total, desc=title, unit="answer", file=sys.stderr) as bar:

        def advance(count: int) -> None:
            bar.update(count)

        yield advance
