"""The summary of pairs: what was sampled, what became a pair, and why the rest did not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from sepo.console import print_table
from sepo.errors import SepoError
from sepo.pairs.pairing import JudgedResponse, candidates
from sepo.pairs.records import JudgedPrompt


@dataclass(frozen=True)
class PromptCounts:
    """Rows that were read for prompts, and those that were left out before sampling.

    Args:
        rows: number of rows.
        duplicates: rows whose prompt another row has, too.
        without_expected: prompts without an expected answer, which a verifier cannot judge.
        too_long: prompts that leave no room for a response in the positions of the model.
    """

    rows: int
    duplicates: int = 0
    without_expected: int = 0
    too_long: int = 0


@dataclass(frozen=True)
class PairsSummary:
    """Numbers of a data set of pairs. Lengths are in tokens, without the stop token.

    Args:
        rows: rows that were read for prompts.
        duplicate_prompts: rows whose prompt another row has, too.
        without_expected: prompts without an expected answer, left out.
        too_long: prompts without room for a response, left out.
        prompts: prompts that were sampled.
        responses: sampled responses.
        truncated: responses that did not end within the maximum number of tokens.
        repeated: responses with the text of another one to the same prompt.
        empty: responses without text.
        pairs: prompts with a pair.
        ties: prompts whose rewards are equal, or closer than the minimum.
        identical: prompts with fewer than two distinct responses.
        unfinished: prompts all of whose responses were truncated.
        best_truncated: pairs whose chosen response is not the best one, since that was truncated.
        rejected_truncated: pairs whose rejected response was truncated.
        tokens: mean length of a response.
        chosen_tokens: mean length of the chosen responses.
        rejected_tokens: mean length of the rejected responses.
        reward: mean reward of all responses.
        chosen_reward: mean reward of the chosen responses.
        rejected_reward: mean reward of the rejected responses.
        margin: mean difference of the two.
        smallest_margin: the smallest difference.
        largest_margin: the largest difference.
    """

    rows: int
    duplicate_prompts: int
    without_expected: int
    too_long: int
    prompts: int
    responses: int
    truncated: int
    repeated: int
    empty: int
    pairs: int
    ties: int
    identical: int
    unfinished: int
    best_truncated: int
    rejected_truncated: int
    tokens: float
    chosen_tokens: float
    rejected_tokens: float
    reward: float
    chosen_reward: float
    rejected_reward: float
    margin: float
    smallest_margin: float
    largest_margin: float

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PairsSummary:
        """Construct from the values of ``as_dict``.

        Raises:
            KeyError: a number is missing.
        """
        return cls(**{item.name: values[item.name] for item in fields(cls)})


def pairs_summary(judged: Sequence[JudgedPrompt], counts: PromptCounts) -> PairsSummary:
    """Summarize prompts with their responses.

    Args:
        judged: the prompts, at least one of which has a pair.
        counts: the rows that they were read from.

    Raises:
        SepoError: no prompt has a pair.
    """
    results = Counter(each.result for each in judged if each.pair is None)
    found = [each for each in judged if each.pair is not None]
    if not found:
        raise SepoError(
            f"no ties broken: none of {len(judged):,} prompts has a pair ({results['tie']:,} with equal rewards, "
            f"{results['identical']:,} with fewer than two distinct responses, {results['unfinished']:,} with "
            "truncated responses alone); raise pairs_samples, pairs_temperature or pairs_max_new_tokens, or set "
            "another judge, in another pairs_dir."
        )
    responses = [response for each in judged for response in each.responses]
    sides = [each.sides for each in found]
    margins = [each.margin for each in found]
    empty = sum(not response.text.strip() for response in responses)
    return PairsSummary(
        rows=counts.rows,
        duplicate_prompts=counts.duplicates,
        without_expected=counts.without_expected,
        too_long=counts.too_long,
        prompts=len(judged),
        responses=len(responses),
        truncated=sum(not response.finished for response in responses),
        repeated=len(responses) - empty - sum(len(candidates(each.responses)) for each in judged),
        empty=empty,
        pairs=len(found),
        ties=results["tie"],
        identical=results["identical"],
        unfinished=results["unfinished"],
        best_truncated=sum(
            _best(each.responses) > chosen.reward for each, (chosen, _) in zip(found, sides, strict=True)
        ),
        rejected_truncated=sum(not rejected.finished for _, rejected in sides),
        tokens=_mean([response.tokens for response in responses]),
        chosen_tokens=_mean([chosen.tokens for chosen, _ in sides]),
        rejected_tokens=_mean([rejected.tokens for _, rejected in sides]),
        reward=_mean([response.reward for response in responses]),
        chosen_reward=_mean([chosen.reward for chosen, _ in sides]),
        rejected_reward=_mean([rejected.reward for _, rejected in sides]),
        margin=_mean(margins),
        smallest_margin=min(margins),
        largest_margin=max(margins),
    )


def _best(responses: Sequence[JudgedResponse]) -> float:
    """Return the highest reward of the responses that can be in a pair."""
    return max(responses[number].reward for number in candidates(responses))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(np.asarray(values, dtype=np.float64)))


def summary_rows(summary: PairsSummary) -> list[tuple[str, str]]:
    """Return a summary as rows of a table, without counts of problems that did not occur."""
    responses, prompts = summary.responses, summary.prompts
    rows = [
        ("pairs", _part(summary.pairs, prompts)),
        ("ties", _part(summary.ties, prompts)),
        ("fewer than two distinct responses", _part(summary.identical, prompts)),
        ("all responses truncated", _part(summary.unfinished, prompts)),
        ("duplicate prompts, left out", f"{summary.duplicate_prompts:,} of {summary.rows:,} rows"),
        ("without expected answer, left out", f"{summary.without_expected:,}"),
        ("too long for the model, left out", f"{summary.too_long:,}"),
        ("truncated responses", _part(summary.truncated, responses)),
        ("repeated responses", _part(summary.repeated, responses)),
        ("empty responses", _part(summary.empty, responses)),
        ("best response truncated, not chosen", _part(summary.best_truncated, summary.pairs)),
        ("rejected response truncated", _part(summary.rejected_truncated, summary.pairs)),
        ("tokens per response", f"{summary.tokens:.1f}"),
        ("tokens, chosen and rejected", f"{summary.chosen_tokens:.1f} and {summary.rejected_tokens:.1f}"),
        ("mean reward", f"{summary.reward:.4g}"),
        ("reward, chosen and rejected", f"{summary.chosen_reward:.4g} and {summary.rejected_reward:.4g}"),
        ("margin", f"{summary.margin:.4g} ({summary.smallest_margin:.4g} to {summary.largest_margin:.4g})"),
    ]
    optional = {"without_expected": rows[5], "too_long": rows[6], "empty": rows[9]}
    absent = [row for name, row in optional.items() if not getattr(summary, name)]
    return [row for row in rows if row not in absent]


def print_pairs(summary: PairsSummary, *, source: str, judge: str) -> None:
    """Print a summary.

    Args:
        summary: the summary.
        source: the data set or the files of the prompts.
        judge: the judge in words.
    """
    responses, prompts = summary.responses, summary.prompts
    title = f"{responses:,} responses to {prompts:,} prompts of {source}, by {judge}"
    print_table(title, ["", ""], summary_rows(summary))


def _part(number: int, whole: int) -> str:
    return f"{number:,} of {whole:,} ({number / whole:.1%})"
