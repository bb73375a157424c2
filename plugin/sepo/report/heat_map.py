"""The rows of the heat map as data for the page, as many as fit."""

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
_RESPONSE_TOKENS = 4_000
"""Maximum lengths of a prompt, a token and a response; the page marks truncation."""
_BRACKETS = len(',"rows":[]}')
_LIMIT = 0.98
"""Quantile of the absolute scores at the ends of the color scale; larger scores are clipped to it."""


@dataclass(frozen=True)
class HeatMap:
    """The rows that the page shows.

    Args:
        text: JSON that is safe inside a ``script`` element.
        shown: number of rows in it.
        sampled: number of rows of the subjects.
        rows: number of rows of the data set; None if unknown.
    """

    text: str
    shown: int
    sampled: int
    rows: int | None


def heat_map(subjects: Sequence[Subject], *, budget: int) -> HeatMap:
    """Encode the rows of the subjects side by side.

    Args:
        subjects: the subjects of the report; rows are matched by number.
        budget: maximum size of the data in bytes of UTF-8; if all rows exceed it, as many as fit are taken, evenly
            spaced.

    Returns:
        The data with the numbers of rows.
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
    """Return the pairs of each row, one per subject or None, by row number; rows with unknown number come last.

    If a subject has a row several times, at different steps, they are matched with the others' in order of the steps.
    """
    groups: dict[tuple[bool, int, int, int], list[Pair | None]] = {}
    for place, subject in enumerate(subjects):
        times: Counter[int] = Counter()
        for pair in sorted(subject.pairs, key=lambda pair: -1 if pair.step is None else pair.step):
            times[pair.row] += 1
            unknown = pair.row < 0
            # Rows without a number are never matched.
            key = (unknown, pair.row, place if unknown else times[pair.row], times[pair.row])
            groups.setdefault(key, [None] * len(subjects))[place] = pair
    return [groups[key] for key in sorted(groups)]


def mean_margin(pair: Pair) -> float | None:
    """Return the mean score of selected chosen tokens minus that of selected rejected ones; None if either is empty."""
    means = []
    for side in (pair.chosen, pair.rejected):
        scores = np.asarray(side.scores, float)[np.asarray(side.selected, bool)]
        finite = scores[np.isfinite(scores)]
        if not len(finite):
            return None
        means.append(float(finite.mean()))
    return means[0] - means[1]


def _spread(sizes: Sequence[int], budget: int) -> list[int]:
    """Return the indices of the most rows, evenly spaced, whose total size fits."""
    low, high = 0, len(sizes)
    while low < high:
        count = (low + high + 1) // 2
        if sum(sizes[place] for place in _evenly(len(sizes), count)) <= budget:
            low = count
        else:
            high = count - 1
    return _evenly(len(sizes), low)


def _evenly(count: int, kept: int) -> list[int]:
    return [int(place * count / kept) for place in range(kept)]


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
    """Encode tokens ``t``, scores ``s``, selection ``k``, and ``more``, how many are omitted; if the tokens are weighed
    also weights ``w`` and ``e``, the effective number of tokens.

    The selection has a character per token: ``1`` if it is selected, ``0`` if not, ``-`` if it is the chat template's.
    """
    scores = np.asarray(side.scores, float)[:_RESPONSE_TOKENS]
    same = next((place for place, other in enumerate(before) if other.tokens == side.tokens), None)
    texts = [visible(clipped(token, _TOKEN_CHARACTERS)) for token in side.tokens[:_RESPONSE_TOKENS]]
    return {
        "t": texts if same is None else same,
        "s": [_score(score) for score in scores.tolist()],
        "k": _selection(side)[:_RESPONSE_TOKENS],
        "more": max(0, len(side.tokens) - _RESPONSE_TOKENS),
        **_weights(side),
    }


def _weights(side: Side) -> dict[str, Any]:
    if side.weights is None or side.effective is None:
        return {}
    return {
        "w": [_rounded(weight) for weight in side.weights[:_RESPONSE_TOKENS].tolist()],
        "e": _rounded(side.effective),
    }


def _selection(side: Side) -> str:
    if side.candidates is None:
        return "".join("1" if kept else "0" for kept in side.selected)
    both = zip(side.selected, side.candidates, strict=True)
    return "".join("-" if not candidate else "1" if kept else "0" for kept, candidate in both)


def _agreement(pairs: Sequence[Pair]) -> float | None:
    """Return the smallest overlap of two subjects' selections of the same tokens: intersection over union."""
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
    """Encode a score: infinity as a string, as JSON has none; None for a token without a score."""
    if math.isnan(score):
        return None
    return _rounded(score) if math.isfinite(score) else ("inf" if score > 0 else "-inf")


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _escaped(value: Any) -> str:
    """Return JSON that neither opens nor closes an element or comment of the page."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
