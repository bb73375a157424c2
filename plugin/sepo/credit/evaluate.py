"""Evaluation of scorers from scores and marked errors of many responses: arrays in, estimates with intervals out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch

from sepo.credit.measures import (
    Array,
    auroc,
    average_precision,
    first_error,
    first_error_auroc,
    precision_recall,
)
from sepo.errors import SepoError
from sepo.intervals import Bootstrap, Estimate
from sepo.selection.select import select_tokens

MEASURES = ("auroc", "average_precision", "precision", "recall", "first_error", "first_error_auroc")
"""Measures of every scorer. Precision and recall are of the units (tokens, spans, steps) selected at the ratio."""

TYPE_MEASURES = ("auroc", "average_precision", "recall")
"""Measures of every scorer and type of error. The precision of a selection cannot be split by type."""

Scores = Sequence[Sequence[Array]]
"""Scores of a scorer: draws (one unless it is random), each with an array [T] per response, low = wrong."""


@dataclass(frozen=True)
class MarkedResponse:
    """The marked tokens of one rejected response, or its marked spans or steps.

    Args:
        marked: bool [T], True for tokens that overlap a known error.
        types: by type of error, bool [T], True for tokens that overlap an error of that type.
        language: code of the language, or the empty string.
        known: bool [T], False for tokens of which it is not known whether they are wrong; None if all are labelled.
    """

    marked: Array
    types: Mapping[str, Array]
    language: str = ""
    known: Array | None = None

    @property
    def labelled(self) -> Array:
        """Return bool [T], True for tokens that are known to be right or wrong."""
        return np.ones(self.marked.size, dtype=bool) if self.known is None else self.known

    @property
    def measurable(self) -> bool:
        """Whether there are both marked and unmarked tokens among the labelled ones."""
        marked = self.marked[self.labelled]
        return bool(marked.any() and not marked.all())


@dataclass(frozen=True)
class Evaluation:
    """Results of an evaluation.

    Args:
        responses: number of measured responses.
        unmarked: number of responses excluded because none of their tokens is marked.
        all_marked: number of responses excluded because all of their tokens are marked.
        tokens: number of labelled tokens (units) of the measured responses.
        marked_tokens: number of marked tokens among them.
        preceded: number of measured responses with a right token before the first error, those of
            ``first_error_auroc``.
        best: precision and recall, at the ratio, of a scorer that ranks every marked token first.
        scorers: estimates by scorer and measure.
        types: estimates by scorer, type of error and measure.
        type_responses: by type, number of responses with errors of that type and unmarked tokens.
        languages: estimates by scorer, language and measure; empty if no language is known.
        language_responses: by language, number of measured responses.
        differences: (first scorer, second scorer, estimates by measure of first minus second, paired by response).
    """

    responses: int
    unmarked: int
    all_marked: int
    tokens: int
    marked_tokens: int
    preceded: int
    best: Mapping[str, float]
    scorers: Mapping[str, Mapping[str, Estimate]]
    types: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
    type_responses: Mapping[str, int]
    languages: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
    language_responses: Mapping[str, int]
    differences: Sequence[tuple[str, str, Mapping[str, Estimate]]]

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, as ``sepo.credit.run`` documents them."""

        def plain(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
            return {
                measure: {"mean": found.value, "low": found.low, "high": found.high}
                for measure, found in estimates.items()
            }

        return {
            "responses": self.responses,
            "left_out": {"no_token_marked": self.unmarked, "all_tokens_marked": self.all_marked},
            "tokens": self.tokens,
            "marked_tokens": self.marked_tokens,
            "preceded": self.preceded,
            "best_possible": dict(self.best),
            "scorers": {
                name: {
                    **plain(estimates),
                    "by_type": {
                        kind: {"responses": self.type_responses[kind], **plain(of_type)}
                        for kind, of_type in self.types[name].items()
                    },
                    "by_language": {
                        language: {"responses": self.language_responses[language], **plain(of_language)}
                        for language, of_language in self.languages[name].items()
                    },
                }
                for name, estimates in self.scorers.items()
            },
            "differences": [{"first": first, "second": second, **plain(of)} for first, second, of in self.differences],
        }


def evaluate(
    responses: Sequence[MarkedResponse], scores: Mapping[str, Scores], *, ratio: float, samples: int, seed: int
) -> Evaluation:
    """Evaluate scorers on the same responses.

    A response is measured if some of its labelled tokens are marked and some are not. The AUROC and average precision
    of a type separate its tokens from those that no error of any type covers; its recall is of the selection among all
    labelled tokens. Tokens that are not labelled only count in ``first_error``, as candidates that are not the first
    error. ``first_error_auroc`` is of the responses with a right token before the first error, and missing if there
    are none. Responses may also be of spans or steps (``sepo.credit.units``).

    Args:
        responses: the responses with their marked tokens.
        scores: scores by scorer; the measures of several draws are averaged within each response.
        ratio: share of a response's tokens that is selected, those with the lowest scores (rule ``floor``).
        samples: number of bootstrap samples.
        seed: seed of the bootstrap.

    Raises:
        SepoError: no response can be measured, or a scorer does not give one finite score per token.
    """
    kept = [index for index, response in enumerate(responses) if response.measurable]
    if not kept:
        raise SepoError(
            f"none of the {len(responses)} rejected responses has both marked and unmarked tokens, so nothing can be "
            "measured; check the spans, and that cutoff_len does not truncate the responses."
        )
    measured = [responses[index] for index in kept]
    kinds = sorted({kind for response in measured for kind in response.types if _has(response, kind)})
    with_kind = {kind: [place for place, response in enumerate(measured) if _has(response, kind)] for kind in kinds}
    with_language: dict[str, list[int]] = {}
    for place, response in enumerate(measured):
        if response.language:
            with_language.setdefault(response.language, []).append(place)
    estimate = _Estimator(samples, seed)

    values: dict[str, dict[str, Array]] = {}
    types: dict[str, dict[str, dict[str, Estimate]]] = {}
    for name, draws in scores.items():
        rows = [_response(response, [draw[i] for draw in draws], ratio, name) for response, i in _zip(measured, kept)]
        values[name] = {measure: np.array([row[""][measure] for row in rows]) for measure in MEASURES}
        types[name] = {
            kind: {
                measure: estimate.mean(np.array([rows[place][kind][measure] for place in places]))
                for measure in TYPE_MEASURES
            }
            for kind, places in with_kind.items()
        }
    defined = {measure: _defined(value) for measure, value in next(iter(values.values())).items()}
    best = [_response(response, [-response.marked.astype(float)], ratio, "best")[""] for response in measured]
    return Evaluation(
        responses=len(kept),
        unmarked=sum(not response.marked.any() for response in responses),
        all_marked=sum(bool(response.marked.any() and response.marked.all()) for response in responses),
        tokens=sum(int(response.labelled.sum()) for response in measured),
        marked_tokens=sum(int((response.marked & response.labelled).sum()) for response in measured),
        preceded=len(defined["first_error_auroc"]),
        best={measure: float(np.mean([row[measure] for row in best])) for measure in ("precision", "recall")},
        scorers={
            name: {measure: estimate.mean(value[defined[measure]]) for measure, value in of.items() if defined[measure]}
            for name, of in values.items()
        },
        types=types,
        type_responses={kind: len(places) for kind, places in with_kind.items()},
        languages={
            name: {
                language: {
                    measure: estimate.mean(value[places])
                    for measure, value in of.items()
                    if (places := [place for place in every if place in set(defined[measure])])
                }
                for language, every in sorted(with_language.items())
            }
            for name, of in values.items()
        },
        language_responses={language: len(places) for language, places in sorted(with_language.items())},
        differences=[
            (
                first,
                second,
                {
                    measure: estimate.mean((values[first][measure] - values[second][measure])[defined[measure]])
                    for measure in MEASURES
                    if defined[measure]
                },
            )
            for first, second in combinations(values, 2)
        ],
    )


class _Estimator:
    """Means with intervals; responses are drawn alike for every measure of the same responses, so they are paired."""

    def __init__(self, samples: int, seed: int) -> None:
        self._samples, self._seed = samples, seed

    def mean(self, values: Array) -> Estimate:
        """Return the mean of values, [N], with its interval."""
        return Bootstrap(len(values), samples=self._samples, seed=self._seed).mean(values)


def _defined(values: Array) -> list[int]:
    """Return the places of the responses for which a measure is defined."""
    return [int(place) for place in np.flatnonzero(~np.isnan(values))]


def _zip(measured: Sequence[MarkedResponse], kept: Sequence[int]) -> list[tuple[MarkedResponse, int]]:
    return list(zip(measured, kept, strict=True))


def _has(response: MarkedResponse, kind: str) -> bool:
    return kind in response.types and bool((response.types[kind] & response.labelled).any())


def _response(response: MarkedResponse, draws: Sequence[Array], ratio: float, name: str) -> dict[str, dict[str, float]]:
    """Return the measures of one response, under "" for all errors and under each type, averaged over the draws."""
    made = [_draw(response, np.asarray(scores, dtype=np.float64), ratio, name) for scores in draws]
    return {
        kind: {measure: float(np.mean([draw[kind][measure] for draw in made])) for measure in of}
        for kind, of in made[0].items()
    }


def _draw(response: MarkedResponse, scores: Array, ratio: float, name: str) -> dict[str, dict[str, float]]:
    marked = response.marked
    if scores.shape != marked.shape or not np.isfinite(scores).all():
        raise SepoError(
            f"scorer {name} gives {scores.size} scores for a response of {marked.size} tokens, or some that are not "
            "finite; expected one finite score per token."
        )
    whole_scores, whole_marks = scores, marked
    labelled = response.labelled
    scores, marked = scores[labelled], marked[labelled]
    mask = torch.ones(1, scores.size, dtype=torch.bool)
    selected = select_tokens(torch.from_numpy(scores)[None], mask, ratio=ratio, largest=False)[0].numpy()
    precision, recall = precision_recall(selected, marked)
    made = {
        "": {
            "auroc": auroc(scores, marked),
            "average_precision": average_precision(scores, marked),
            "precision": precision,
            "recall": recall,
            "first_error": first_error(whole_scores, whole_marks),
            "first_error_auroc": first_error_auroc(scores, marked),
        }
    }
    for kind, every in response.types.items():
        of_kind = every[labelled]
        if of_kind.any():
            compared = of_kind | ~marked
            made[kind] = {
                "auroc": auroc(scores[compared], of_kind[compared]),
                "average_precision": average_precision(scores[compared], of_kind[compared]),
                "recall": precision_recall(selected, of_kind)[1],
            }
    return made
