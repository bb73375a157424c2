"""Wordings of the generated pairs: templates with slots that may be corrupted, and the rows built from them."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

__all__ = ["PairRow", "Piece", "Span", "WeightedSpan", "cut", "fill", "make_row", "slots"]

_MAX_SPANS = 3
_MAX_WRONG_SHARE = 0.35  # of a response's characters, so that most of every rejected response stays shared
_SLOT = re.compile(
    r"\{(?P<given>\^?\w+)\}|\[(?P<name>\^?\w+)\]|\[(?P<right>[^\]|]+)\|(?P<wrong>[^\]|]+)(?:\|(?P<group>\w))?\]"
)
_POLARITY = {"Yes", "No", "never", "does", "do", "often", "all", "few"}


class Span(TypedDict):
    """A span of the rejected response, ``rejected[start:end]`` in characters, and its type (``Wrong-Name``, ...)."""

    start: int
    end: int
    type: str


class WeightedSpan(TypedDict):
    """A span of a response in characters, and its weight, as ``token_scorer: file`` reads it."""

    start: int
    end: int
    weight: float


class PairRow(TypedDict):
    """One row in LLaMA-Factory's ranking format, with additional columns that only sepo reads.

    ``rejected_right_spans`` marks the values in the rejected response that could have been corrupted but were not (type
    ``Right-Value``). A token score must distinguish wrong values from these: names and numbers stand out from function
    words whether they are right or wrong. ``rejected_spans`` are the wrong values and ``chosen_spans`` the values that
    they replace, each with weight 1: the annotations that ``token_scorer: file`` selects by.
    """

    conversations: list[dict[str, str]]
    chosen: dict[str, str]
    rejected: dict[str, str]
    rejected_error_spans: list[Span]
    rejected_right_spans: list[Span]
    chosen_spans: list[WeightedSpan]
    rejected_spans: list[WeightedSpan]
    domain: str


@dataclass(frozen=True)
class Piece:
    """A part of a response. Pieces of one ``group`` are corrupted jointly; one with ``wrong`` None never is."""

    right: str
    wrong: str | None = None
    group: str = ""
    type: str = ""


def slots(template: str) -> set[str]:
    """Return the names of the values that may be corrupted in a wording."""
    return {match["name"].lstrip("^") for match in _SLOT.finditer(template) if match["name"]}


def cut(
    template: str,
    values: Mapping[str, str],
    wrong: Mapping[str, str],
    *,
    types: Mapping[str, str],
    together: Sequence[Sequence[str]] = (),
) -> list[Piece]:
    """Cut a wording into shared text and slots.

    Args:
        template: ``{name}`` is a value that stays, ``[name]`` one that may be corrupted, ``[right|wrong|group]`` gives
            both values literally; ``^`` before a name stands for a capital letter.
        values: right values by name.
        wrong: wrong values by name; a slot without one is shared text.
        types: the type of error by name.
        together: names that are corrupted jointly.
    """
    pieces, end = [], 0
    for match in _SLOT.finditer(template):
        pieces.append(Piece(template[end : match.start()]))
        end = match.end()
        if match["given"]:
            pieces.append(Piece(cased(values[match["given"].lstrip("^")], match["given"])))
        elif match["name"]:
            name = match["name"].lstrip("^")
            right = cased(values[name], match["name"])
            if name not in wrong:
                pieces.append(Piece(right))
                continue
            group = next((names[0] for names in together if name in names), name)
            pieces.append(Piece(right, cased(wrong[name], match["name"]), group, types[name]))
        else:
            kind = _written_type(match["right"], match["wrong"])
            pieces.append(Piece(match["right"], match["wrong"], match["group"] or "", kind))
    return [piece for piece in (*pieces, Piece(template[end:])) if piece.right]


def fill(template: str, values: Mapping[str, str]) -> str:
    """Return a wording filled with its right values."""
    return "".join(piece.right for piece in cut(template, values, {}, types={}))


def cased(value: str, name: str) -> str:
    """Return the value, capitalized if its name starts with ``^``."""
    return value[0].upper() + value[1:] if name.startswith("^") else value


def _written_type(right: str, wrong: str) -> str:
    if right[0].isdigit():
        return "Wrong-Number"
    return "Wrong-Polarity" if {right, wrong} & _POLARITY else "Wrong-Word"


def make_row(
    question: str,
    pieces: Sequence[Piece],
    *,
    domain: str,
    rng: random.Random,
    weights: tuple[int, int, int] = (3, 5, 3),
) -> PairRow:
    """Build a pair: the response with the right values, and the same response with wrong ones.

    Args:
        question: the prompt.
        pieces: the pieces of the response.
        domain: the subject area of the row.
        rng: random number generator.
        weights: relative frequencies of one, two and three corrupted groups of values, if there are that many.
    """
    picked = _picked_groups(pieces, rng, weights)
    rejected, wrong, right, replaced = _corrupt(pieces, picked)
    return PairRow(
        conversations=[{"from": "human", "value": question}],
        chosen={"from": "gpt", "value": "".join(piece.right for piece in pieces)},
        rejected={"from": "gpt", "value": rejected},
        rejected_error_spans=wrong,
        rejected_right_spans=right,
        chosen_spans=replaced,
        rejected_spans=[_weighted(span["start"], span["end"]) for span in wrong],
        domain=domain,
    )


def _picked_groups(pieces: Sequence[Piece], rng: random.Random, weights: tuple[int, int, int]) -> list[str]:
    """Draw the groups of pieces that are corrupted, at least one."""
    groups = list(dict.fromkeys(piece.group for piece in pieces if piece.wrong is not None))
    rng.shuffle(groups)
    length = sum(len(piece.right) for piece in pieces)
    count = rng.choices((1, 2, 3), weights=weights)[0]
    picked: list[str] = []
    for group in groups[:count]:
        trial = [piece.wrong for piece in pieces if piece.wrong is not None and piece.group in (*picked, group)]
        if not picked or (len(trial) <= _MAX_SPANS and sum(map(len, trial)) <= _MAX_WRONG_SHARE * length):
            picked.append(group)
    return picked


def _corrupt(pieces: Sequence[Piece], picked: Sequence[str]) -> tuple[str, list[Span], list[Span], list[WeightedSpan]]:
    """Corrupt groups of pieces.

    Returns:
        The rejected text, its wrong spans, the spans of its right values, and the spans of the chosen text that the
        wrong ones replace.
    """
    text, chosen_length = "", 0
    wrong_spans, right_spans, replaced = list[Span](), list[Span](), list[WeightedSpan]()
    for piece in pieces:
        corrupted = piece.wrong is not None and piece.group in picked
        value = piece.wrong if piece.wrong is not None and corrupted else piece.right
        start, end = len(text), len(text) + len(value)
        text += value
        if corrupted:
            wrong_spans.append(Span(start=start, end=end, type=piece.type))
            replaced.append(_weighted(chosen_length, chosen_length + len(piece.right)))
        elif piece.wrong is not None:
            right_spans.append(Span(start=start, end=end, type="Right-Value"))
        chosen_length += len(piece.right)
    return text, wrong_spans, right_spans, replaced


def _weighted(start: int, end: int) -> WeightedSpan:
    return WeightedSpan(start=start, end=end, weight=1.0)
