"""From scores and marks of many responses to what each scorer is worth: arrays in, numbers with intervals out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch

from sepo.credit.measures import Array, Bootstrap, Estimate, auroc, average_precision, precision_recall
from sepo.errors import SepoError
from sepo.selection.select import select_tokens

MEASURES = ("auroc", "average_precision", "precision", "recall")
"""Of every scorer. The last two are of the tokens that the selection takes at the ratio."""

TYPE_MEASURES = ("auroc", "average_precision", "recall")
"""Of every scorer and type of error. A selection's precision has no share that belongs to one type."""

Scores = Sequence[Sequence[Array]]
"""A scorer's draws (one, where chance plays no part), each with every response's numbers [T], low = wrong."""


@dataclass(frozen=True)
class MarkedResponse:
    """One rejected answer, token by token.

    Args:
        marked: bool [T], True where a token overlaps a known error.
        types: by type of error, bool [T], True where a token overlaps an error of that type.
    """

    marked: Array
    types: Mapping[str, Array]

    @property
    def measurable(self) -> bool:
        """Whether there are marked tokens and unmarked ones."""
        return bool(self.marked.any() and not self.marked.all())


@dataclass(frozen=True)
class Evaluation:
    """What came of it.

    Args:
        responses: how many were measured.
        unmarked: how many were left out because none of their tokens is marked.
        all_marked: how many were left out because all of them are.
        tokens: of the measured responses.
        marked_tokens: of these.
        best: precision and recall at the ratio of a scorer that ranks every marked token first.
        scorers: by scorer, by measure.
        types: by scorer, by type of error, by measure.
        type_responses: by type, how many responses have it and unmarked tokens.
        differences: (first scorer, second scorer, by measure: first minus second, response by response).
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
            return {measure: estimate.as_dict() for measure, estimate in estimates.items()}

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
    """Measure scorers on the same responses.

    A response is measured where some of its tokens are marked and some are not. A type's AUROC and average precision
    tell its tokens from those that no error of any type covers; its recall is of the selection that is made from all
    tokens.

    Args:
        responses: the answers.
        scores: by scorer; the measures of several draws are averaged within each response.
        ratio: share of a response's tokens that is selected, those with the lowest scores (rule ``floor``).
        samples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        SepoError: no response can be measured; a scorer gives numbers of another count than a response's tokens, or
            some that are not finite.
    """
    kept = [index for index, response in enumerate(responses) if response.measurable]
    if not kept:
        raise SepoError(
            f"none of the {len(responses)} rejected answers has both marked and unmarked tokens, so nothing can be "
            "measured; check the spans, and that cutoff_len leaves the answers whole."
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
    """The measures of one response, under "" for all errors and under each type, averaged over the draws."""
    made = [_draw(response, np.asarray(scores, dtype=np.float64), ratio, name) for scores in draws]
    return {
        kind: {measure: float(np.mean([draw[kind][measure] for draw in made])) for measure in of}
        for kind, of in made[0].items()
    }


def _draw(response: MarkedResponse, scores: Array, ratio: float, name: str) -> dict[str, dict[str, float]]:
    marked = response.marked
    if scores.shape != marked.shape or not np.isfinite(scores).all():
        raise SepoError(
            f"scorer {name} gives {scores.size} numbers for an answer of {marked.size} tokens, or some that are not "
            "finite; expected one finite number per token."
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
            told_apart = of_kind | ~marked
            made[kind] = {
                "auroc": auroc(scores[told_apart], of_kind[told_apart]),
                "average_precision": average_precision(scores[told_apart], of_kind[told_apart]),
                "recall": precision_recall(selected, of_kind)[1],
            }
    return made
