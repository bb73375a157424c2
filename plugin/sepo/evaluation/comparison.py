"""Comparison of policies on the same rows: measures by row, means over seeds, and paired differences."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sepo.evaluation.degeneration import REPEATED, repeated_ngrams
from sepo.evaluation.estimates import estimate
from sepo.evaluation.run import HeldOut, PolicyResult, SetResult
from sepo.intervals import Estimate, share

PAIRS, ANSWERS = "pairs", "answers"
"""What the rows of a measure are: held-out pairs, or answers to their prompts."""

MEASURES: Mapping[str, tuple[str, str]] = {
    "accuracy": (PAIRS, "Share of pairs whose chosen response has the higher log-ratio to the reference."),
    "margin": (PAIRS, "Log-ratio of the chosen response minus that of the rejected one, in nats."),
    "accuracy_summed": (PAIRS, "Share of pairs whose chosen response has the higher log-probability."),
    "margin_summed": (PAIRS, "Log-probability of the chosen response minus that of the rejected one, in nats."),
    "accuracy_length_normalized": (PAIRS, "As accuracy_summed, of the log-probabilities per token."),
    "margin_length_normalized": (PAIRS, "As margin_summed, of the log-probabilities per token."),
    "kl_chosen": (PAIRS, "KL from the reference, summed over the tokens of the chosen response, in nats."),
    "kl_rejected": (PAIRS, "The same over the rejected response."),
    "kl_answers": (ANSWERS, "The same over the generated answer."),
    "tokens": (ANSWERS, "Tokens of the answer, without its end of turn."),
    "finished": (ANSWERS, "Share of answers that ended with the end of turn."),
    **{f"repeated_{n}": (ANSWERS, f"Share of the answer's {n}-grams that occur earlier in it.") for n in REPEATED},
    "right": (ANSWERS, "Share of answers that are right, by the judge; of those with an expected answer."),
    "right_and_finished": (ANSWERS, "Share of answers that are right and ended with the end of turn."),
}
"""By name, what the rows of a measure are, and its meaning."""

_SHARES = ("right", "right_and_finished")

Rows = Mapping[str, Sequence[float | None]]
"""Value of each row by measure; None for a row without one."""


def row_measures(result: PolicyResult, *, answers: str) -> dict[str, list[float | None]]:
    """Return the measures of an evaluated policy by row.

    Args:
        result: the results.
        answers: name of the prompts whose answers are measured; ignored if they were not answered.
    """
    names = {"reward": "", "summed": "_summed", "length_normalized": "_length_normalized"}
    found: dict[str, list[float | None]] = {}
    for name, suffix in names.items():
        if name in result.margins:
            margins = result.margins[name]
            found[f"accuracy{suffix}"] = [float(value > 0) for value in margins]
            found[f"margin{suffix}"] = [float(value) for value in margins]
    for side, part in (result.kl or {}).items():
        found[f"kl_{side}"] = [float(value) for value in part.rows]
    if answers in result.sets:
        found |= _answer_measures(result.sets[answers])
    return found


def _answer_measures(part: SetResult) -> dict[str, list[float | None]]:
    generated = [turn.generated for turns in part.answers for turn in turns]
    found: dict[str, list[float | None]] = {} if part.kl is None else {"kl_answers": [float(v) for v in part.kl.rows]}
    found["tokens"] = [float(len(each.answer)) for each in generated]
    found["finished"] = [float(each.finished) for each in generated]
    for n in REPEATED:
        found[f"repeated_{n}"] = [repeated_ngrams(each.answer, n) for each in generated]
    if part.verdicts is not None:
        right = [None if each.right is None else float(each.right) for each in part.verdicts]
        found["right"] = right
        found["right_and_finished"] = [
            None if value is None else value * float(each.finished)
            for value, each in zip(right, part.verdicts, strict=True)
        ]
    return found


def rows_digest(heldout: HeldOut) -> str:
    """Return a digest of the token ids of held-out pairs; measures of rows are paired if it is equal."""
    digest = hashlib.sha256()
    for each in (*heldout.chosen, *heldout.rejected):
        digest.update(np.asarray([each.response_start, *each.input_ids], dtype=np.int64).tobytes())
        digest.update(b";")
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Measured:
    """The measures of one run.

    Args:
        rows: values by measure.
        digest: digest of the rows.
    """

    rows: Rows
    digest: str


def run_means(run: Measured) -> dict[str, float | None]:
    """Return the mean of each measure over the rows that have a value; None without such a row."""
    return {name: None if found is None else found.value for name, found in _estimates(run.rows).items()}


def seed_mean(runs: Sequence[Measured]) -> dict[str, Any]:
    """Return each measure as the mean over seeds and rows, with the bootstrap interval over rows.

    The interval is for other rows and the same trained policies: the values of a row are averaged over the seeds, then
    rows are resampled. The spread over seeds is in the means of the single runs. With one run, shares of right answers
    have Wilson's interval, as in `sepo eval`.

    Args:
        runs: the runs of a variant, one for each seed, on the same rows; at least one.

    Returns:
        By measure ``value``, ``low`` and ``high``; None if no row has a value.
    """
    rows = _mean_rows(runs)
    estimates = _estimates(rows)
    for name in _SHARES if len(runs) == 1 else ():
        known = [value for value in rows.get(name, ()) if value is not None]
        if known:
            estimates[name] = share(round(sum(known)), len(known))
    return {name: None if found is None else asdict(found) for name, found in estimates.items()}


def paired_difference(runs: Sequence[Measured], baseline: Sequence[Measured]) -> dict[str, Any] | None:
    """Return each measure minus that of the baseline, paired by row, with bootstrap intervals.

    Args:
        runs: the runs of a variant.
        baseline: the runs of the baseline.

    Returns:
        As ``seed_mean``, for the measures that both have; None if the rows are not the same, as with policies of
        different tokenizers. Rows without a value in one of them are left out.
    """
    if len({run.digest for run in (*runs, *baseline)}) > 1:
        return None
    first, second = _mean_rows(runs), _mean_rows(baseline)
    both = {
        name: [None if a is None or b is None else a - b for a, b in zip(first[name], second[name], strict=True)]
        for name in first
        if name in second
    }
    return {name: None if found is None else asdict(found) for name, found in _estimates(both).items()}


def _mean_rows(runs: Sequence[Measured]) -> dict[str, list[float | None]]:
    """Return the mean over runs by row, of the runs in which the row has a value."""
    found: dict[str, list[float | None]] = {}
    for name in runs[0].rows:
        columns = zip(*(run.rows[name] for run in runs), strict=True)
        found[name] = [float(np.mean(known)) if (known := [v for v in row if v is not None]) else None
                       for row in columns]  # fmt: skip
    return found


def _estimates(rows: Rows) -> dict[str, Estimate | None]:
    return {name: estimate([value for value in values if value is not None]) for name, values in rows.items()}


def best(values: Mapping[str, Sequence[float]]) -> str:
    """Return the name with the highest mean; the first of equal ones.

    >>> best({"a": [0.5, 0.7], "b": [0.6, 0.6], "c": [0.1]})
    'a'
    """
    return max(values, key=lambda name: round(float(np.mean(values[name])), 12))
