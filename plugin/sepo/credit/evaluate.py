"""Evaluation of scorers from scores and marked errors of many responses: arrays in, estimates with intervals out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch

from sepo.credit.measures import Array, auroc, average_precision, precision_recall
from sepo.errors import SepoError
from sepo.intervals import Bootstrap, Estimate
from sepo.selection.select import select_tokens

MEASURES = ("auroc", "average_precision", "precision", "recall")
"""Measures of every scorer. The last two are of the tokens selected at the ratio."""

TYPE_MEASURES = ("auroc", "average_precision", "recall")
"""Measures of every scorer and type of error. The precision of a selection cannot be split by type."""

Scores = Sequence[Sequence[Array]]
"""Scores of a scorer: draws (one unless it is random), each with an array [T] per response, low = wrong."""


@dataclass(frozen=True)
class MarkedResponse:
    """The marked tokens of one rejected response.

    Args:
        marked: bool [T], True for tokens that overlap a known error.
        types: by type of error, bool [T], True for tokens that overlap an error of that type.
    """

    marked: Array
    types: Mapping[str, Array]

    @property
    def measurable(self) -> bool:
        """Whether there are both marked and unmarked tokens."""
        return bool(self.marked.any() and not self.marked.all())


@dataclass(frozen=True)
class Evaluation:
    """Results of an evaluation.

    Args:
        responses: number of measured responses.
        unmarked: number of responses excluded because none of their tokens is marked.
        all_marked: number of responses excluded because all of their tokens are marked.
        tokens: number of tokens of the measured responses.
        marked_tokens: number of marked tokens among them.
        best: precision and recall, at the ratio, of a scorer that ranks every marked token first.
        scorers: estimates by scorer and measure.
        types: estimates by scorer, type of error and measure.
        type_responses: by type, number of responses with errors of that type and unmarked tokens.
        differences: (first scorer, second scorer, estimates by measure of first minus second, paired by response).
    """

    responses: int
    unmarked: int
    all_marked: int
    tokens: int
    marked_tokens: int
    best: Mapping[str, float]
    scorers: Mapping[str, Mapping[str, Estimate]]
    types: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
    type_responses: Mapping[str, int]
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
            "best_possible": dict(self.best),
            "scorers": {
                name: {
                    **plain(estimates),
                    "by_type": {
                        kind: {"responses": self.type_responses[kind], **plain(of_type)}
                        for kind, of_type in self.types[name].items()
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

    A response is measured if some of its tokens are marked and some are not. The AUROC and average precision of a type
    separate its tokens from those that no error of any type covers; its recall is of the selection among all tokens.

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
    kinds = sorted({kind for response in measured for kind, marks in response.types.items() if marks.any()})
    with_kind = {kind: [place for place, response in enumerate(measured) if _has(response, kind)] for kind in kinds}
    bootstrap = Bootstrap(len(kept), samples=samples, seed=seed)
    by_kind = {kind: Bootstrap(len(places), samples=samples, seed=seed) for kind, places in with_kind.items()}

    values: dict[str, dict[str, Array]] = {}
    types: dict[str, dict[str, dict[str, Estimate]]] = {}
    for name, draws in scores.items():
        rows = [_response(response, [draw[i] for draw in draws], ratio, name) for response, i in _zip(measured, kept)]
        values[name] = {measure: np.array([row[""][measure] for row in rows]) for measure in MEASURES}
        types[name] = {
            kind: {
                measure: by_kind[kind].mean(np.array([rows[place][kind][measure] for place in places]))
                for measure in TYPE_MEASURES
            }
            for kind, places in with_kind.items()
        }
    best = [_response(response, [-response.marked.astype(float)], ratio, "best")[""] for response in measured]
    return Evaluation(
        responses=len(kept),
        unmarked=sum(not response.marked.any() for response in responses),
        all_marked=sum(bool(response.marked.any() and response.marked.all()) for response in responses),
        tokens=sum(response.marked.size for response in measured),
        marked_tokens=sum(int(response.marked.sum()) for response in measured),
        best={measure: float(np.mean([row[measure] for row in best])) for measure in ("precision", "recall")},
        scorers={
            name: {measure: bootstrap.mean(value) for measure, value in of.items()} for name, of in values.items()
        },
        types=types,
        type_responses={kind: len(places) for kind, places in with_kind.items()},
        differences=[
            (
                first,
                second,
                {
                    measure: bootstrap.difference(values[first][measure], values[second][measure])
                    for measure in MEASURES
                },
            )
            for first, second in combinations(values, 2)
        ],
    )


def _zip(measured: Sequence[MarkedResponse], kept: Sequence[int]) -> list[tuple[MarkedResponse, int]]:
    return list(zip(measured, kept, strict=True))


def _has(response: MarkedResponse, kind: str) -> bool:
    return kind in response.types and bool(response.types[kind].any())


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
    mask = torch.ones(1, scores.size, dtype=torch.bool)
    selected = select_tokens(torch.from_numpy(scores)[None], mask, ratio=ratio, largest=False)[0].numpy()
    precision, recall = precision_recall(selected, marked)
    made = {
        "": {
            "auroc": auroc(scores, marked),
            "average_precision": average_precision(scores, marked),
            "precision": precision,
            "recall": recall,
        }
    }
    for kind, of_kind in response.types.items():
        if of_kind.any():
            compared = of_kind | ~marked
            made[kind] = {
                "auroc": auroc(scores[compared], of_kind[compared]),
                "average_precision": average_precision(scores[compared], of_kind[compared]),
                "recall": precision_recall(selected, of_kind)[1],
            }
    return made
