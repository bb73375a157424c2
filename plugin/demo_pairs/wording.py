"""Wordings of the generated pairs: templates whose slots may go wrong, and the rows that are made of them."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

__all__ = ["PairRow", "Piece", "Span", "cut", "fill", "make_row", "slots"]

_MAX_SPANS = 3
_MAX_WRONG_SHARE = 0.35  # of the characters of an answer, so that most of every rejected answer stays shared
_SLOT = re.compile(
    r"\{(?P<given>\^?\w+)\}|\[(?P<name>\^?\w+)\]|\[(?P<right>[^\]|]+)\|(?P<wrong>[^\]|]+)(?:\|(?P<group>\w))?\]"
)
_POLARITY = {"Yes", "No", "never", "does", "do", "often", "all", "few"}


class Span(TypedDict):
    """A piece of the rejected answer, ``rejected[start:end]`` in characters, and its kind (``Wrong-Name``, ...)."""

    start: int
    end: int
    type: str


class PairRow(TypedDict):
    """One row in LLaMA-Factory's ranking format, with columns that only this project reads.

    ``rejected_right_spans`` marks the values in the rejected answer that might have been wrong and are not (type
    ``Right-Value``). They are what a token score must be told apart from: names and numbers stand out from function
    words whether they are right or wrong.
    """

    conversations: list[dict[str, str]]
    chosen: dict[str, str]
    rejected: dict[str, str]
    rejected_error_spans: list[Span]
    rejected_right_spans: list[Span]
    domain: str


@dataclass(frozen=True)
class Piece:
    """A stretch of an answer; pieces of one ``group`` go wrong together, one with ``wrong`` None is always shared."""

    right: str
    wrong: str | None = None
    group: str = ""
    type: str = ""


def slots(template: str) -> set[str]:
    """The names of the values that may go wrong in a wording."""
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
        template: ``{name}`` is a value that stays, ``[name]`` one that may go wrong, ``[right|wrong|group]`` both
            values written out; ``^`` before a name asks for a capital letter.
        values: right values by name.
        wrong: wrong values by name; one without is shared.
        types: the kind of error by name.
        together: names that go wrong at once.
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
    """A wording with its right values."""
    return "".join(piece.right for piece in cut(template, values, {}, types={}))


def cased(value: str, name: str) -> str:
    """The value, with a capital letter where its name asks for one."""
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
    """A pair: the answer of right values, and the same answer with wrong ones.

    Args:
        question: the prompt.
        pieces: the answer's.
        domain: what it is about.
        rng: of the draws.
        weights: how often one, two and three values go wrong, as far as there are so many.
    """
    rejected, wrong, right = _corrupt(pieces, rng, weights)
    return PairRow(
        conversations=[{"from": "human", "value": question}],
        chosen={"from": "gpt", "value": "".join(piece.right for piece in pieces)},
        rejected={"from": "gpt", "value": rejected},
        rejected_error_spans=wrong,
        rejected_right_spans=right,
        domain=domain,
    )


def _corrupt(
    pieces: Sequence[Piece], rng: random.Random, weights: tuple[int, int, int]
) -> tuple[str, list[Span], list[Span]]:
    """Put wrong values into one or more groups of pieces; return the text, its wrong spans and its right values."""
    groups = list(dict.fromkeys(piece.group for piece in pieces if piece.wrong is not None))
    rng.shuffle(groups)
    length = sum(len(piece.right) for piece in pieces)
    wanted = rng.choices((1, 2, 3), weights=weights)[0]
    picked: list[str] = []
    for group in groups[:wanted]:
        trial = [piece.wrong for piece in pieces if piece.wrong is not None and piece.group in (*picked, group)]
        if not picked or (len(trial) <= _MAX_SPANS and sum(map(len, trial)) <= _MAX_WRONG_SHARE * length):
            picked.append(group)
    text, wrong_spans, right_spans = "", list[Span](), list[Span]()
    for piece in pieces:
        value = piece.wrong if piece.wrong is not None and piece.group in picked else piece.right
        span = Span(start=len(text), end=len(text) + len(value), type=piece.type)
        text += value
        if piece.wrong is not None and piece.group in picked:
            wrong_spans.append(span)
        elif piece.wrong is not None:
            right_spans.append(Span(start=span["start"], end=span["end"], type="Right-Value"))
    return text, wrong_spans, right_spans
