"""The rows of the heat-map as data for the page, as many as fit."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sepo.report.subject import Pair, Side, Subject
from sepo.report.visible import clipped, visible

_PROMPT_CHARACTERS = 20_000
_TOKEN_CHARACTERS = 200
_ANSWER_TOKENS = 4_000
"""The most that is shown of one prompt, token and answer; the page says where it left something out."""
_BRACKETS = len(',"rows":[]}')
_LIMIT = 0.98
"""The part of the scores within the colour scale; what lies beyond has its end's colour."""


@dataclass(frozen=True)
class HeatMap:
    """What the page shows of the rows.

    Args:
        text: JSON that can stand inside a ``script`` element.
        shown: rows in it.
        sampled: rows that the subjects hold.
        rows: rows of the data set; None where unknown.
    """

    text: str
    shown: int
    sampled: int
    rows: int | None


def heat_map(subjects: Sequence[Subject], *, budget: int) -> HeatMap:
    """Put the subjects' rows side by side.

    Args:
        subjects: what the report is about; rows are the same where their numbers are.
        budget: the most bytes of UTF-8 that the data may have; where all rows have more, as many as fit are taken,
            spread over them.

    Returns:
        The data and what part of the rows it is.
    """
    head = _escaped({"subjects": [_subject(subject) for subject in subjects]})[:-1]
    encoded = [_escaped(_row(pairs)) for pairs in side_by_side(subjects)]
    kept = _spread([len(text.encode()) + 1 for text in encoded], budget - len(head.encode()) - _BRACKETS)
    rows = ",".join(encoded[place] for place in kept)
    known = [subject.rows for subject in subjects if subject.rows is not None]
    return HeatMap(
        text=f'{head},"rows":[{rows}]}}',
        shown=len(kept),
        sampled=len(encoded),
        rows=max(known) if known else None,
    )


def side_by_side(subjects: Sequence[Subject]) -> list[list[Pair | None]]:
    """The pairs of each row, one of each subject or None, by row number; those whose number is not known come last.

    A row that a subject has several times, of different steps, is matched with the others' in the order of the steps.
    """
    groups: dict[tuple[bool, int, int, int], list[Pair | None]] = {}
    for place, subject in enumerate(subjects):
        times: Counter[int] = Counter()
        for pair in sorted(subject.pairs, key=lambda pair: -1 if pair.step is None else pair.step):
            times[pair.row] += 1
            unknown = pair.row < 0
            # What has no number is not the same row as what has none elsewhere.
            key = (unknown, pair.row, place if unknown else times[pair.row], times[pair.row])
            groups.setdefault(key, [None] * len(subjects))[place] = pair
    return [groups[key] for key in sorted(groups)]


def mean_margin(pair: Pair) -> float | None:
    """Mean score of the selected chosen tokens minus that of the selected rejected ones; None where one has none."""
    means = []
    for side in (pair.chosen, pair.rejected):
        scores = np.asarray(side.scores, float)[np.asarray(side.selected, bool)]
        finite = scores[np.isfinite(scores)]
        if not len(finite):
            return None
        means.append(float(finite.mean()))
    return means[0] - means[1]


def _spread(sizes: Sequence[int], budget: int) -> list[int]:
    """The most rows, evenly spread, whose sizes fit."""
    low, high = 0, len(sizes)
    while low < high:
        count = (low + high + 1) // 2
        if sum(sizes[place] for place in _evenly(len(sizes), count)) <= budget:
            low = count
        else:
            high = count - 1
    return _evenly(len(sizes), low)


def _evenly(count: int, wanted: int) -> list[int]:
    return [int(place * count / wanted) for place in range(wanted)]


def _subject(subject: Subject) -> dict[str, Any]:
    scores = [np.asarray(side.scores, float) for pair in subject.pairs for side in (pair.chosen, pair.rejected)]
    flat = np.abs(np.concatenate(scores)) if scores else np.zeros(0)
    finite = flat[np.isfinite(flat)]
    limit = float(np.quantile(finite, _LIMIT)) if len(finite) else 0.0
    return {
        "name": visible(subject.name),
        "limit": float(f"{limit:.3g}") if limit > 0 else 1.0,
        "scored": bool(len(flat) and not np.isnan(flat).all()),
    }


def _row(pairs: Sequence[Pair | None]) -> dict[str, Any]:
    known: list[Pair] = []
    by: list[dict[str, Any] | None] = []
    for pair in pairs:
        by.append(None if pair is None else _pair(pair, known))
        known += [] if pair is None else [pair]
    prompt = next((pair.prompt for pair in known if pair.prompt), "")
    for pair, entry in zip(pairs, by, strict=True):
        if pair is not None and entry is not None and pair.prompt not in ("", prompt):
            entry["prompt"] = visible(clipped(pair.prompt, _PROMPT_CHARACTERS))
    shown = {"row": known[0].row, "prompt": visible(clipped(prompt, _PROMPT_CHARACTERS)), "by": by}
    agreement = _agreement(known)
    return shown if agreement is None else {**shown, "agreement": _rounded(agreement)}


def _pair(pair: Pair, before: Sequence[Pair]) -> dict[str, Any]:
    margin = mean_margin(pair)
    return {
        **({} if pair.step is None else {"step": pair.step}),
        "margin": None if margin is None else _rounded(margin),
        "chosen": _side(pair.chosen, [other.chosen for other in before]),
        "rejected": _side(pair.rejected, [other.rejected for other in before]),
    }


def _side(side: Side, before: Sequence[Side]) -> dict[str, Any]:
    """Tokens ``t``, scores ``s``, selection ``k`` as ones and zeros, tokens left out ``more``."""
    scores = np.asarray(side.scores, float)[:_ANSWER_TOKENS]
    same = next((place for place, other in enumerate(before) if other.tokens == side.tokens), None)
    texts = [visible(clipped(token, _TOKEN_CHARACTERS)) for token in side.tokens[:_ANSWER_TOKENS]]
    return {
        "t": texts if same is None else same,
        "s": [_score(score) for score in scores.tolist()],
        "k": "".join("1" if kept else "0" for kept in side.selected[:_ANSWER_TOKENS]),
        "more": max(0, len(side.tokens) - _ANSWER_TOKENS),
    }


def _agreement(pairs: Sequence[Pair]) -> float | None:
    """The least overlap of two subjects' selections over the same tokens: selected by both over selected by any."""
    if len(pairs) < 2:
        return None
    shares = []
    for place, first in enumerate(pairs):
        for second in pairs[place + 1 :]:
            sides = [(getattr(first, name), getattr(second, name)) for name in ("chosen", "rejected")]
            if any(one.tokens != other.tokens for one, other in sides):
                return None
            masks = [(np.asarray(one.selected, bool), np.asarray(other.selected, bool)) for one, other in sides]
            either = sum(int((one | other).sum()) for one, other in masks)
            shares.append(sum(int((one & other).sum()) for one, other in masks) / either if either else 1.0)
    return min(shares)


def _score(score: float) -> float | str | None:
    """JSON has no infinity: it is a string there; None where a token has no score."""
    if math.isnan(score):
        return None
    return _rounded(score) if math.isfinite(score) else ("inf" if score > 0 else "-inf")


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _escaped(value: Any) -> str:
    """JSON in which nothing ends or opens an element or a comment of the page."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
