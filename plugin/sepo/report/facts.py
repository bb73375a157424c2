"""What the page says in tables: the subjects side by side, their settings, recipes and versions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sepo.report.score_charts import selected_ratio
from sepo.report.subject import Subject
from sepo.report.visible import clipped, number, one_line, visible
from sepo.selection import SIDES

_CELL_CHARACTERS = 600
_KEY_CHARACTERS = 120
_MOST_ROWS = 400
"""The most of a cell and of a table that is shown: a recipe can hold anything."""
_KINDS = {"run": "training run", "store": "store of token scores"}


@dataclass(frozen=True)
class Fact:
    """A row of a table.

    Args:
        key: what it is about.
        values: of each subject, in their order; the empty string where it has none.
        differs: whether the subjects' values are not the same.
    """

    key: str
    values: Sequence[str]
    differs: bool = False


@dataclass(frozen=True)
class Comparison:
    """A table with a column for each subject.

    Args:
        title: its heading.
        rows: its rows; none where nothing is known.
        left_out: rows that are not shown, for there are too many.
    """

    title: str
    rows: Sequence[Fact]
    left_out: int = 0


def overview(subjects: Sequence[Subject]) -> list[Fact]:
    """What a subject is, in a dozen lines; without those that no subject has."""
    rows: list[tuple[str, Callable[[Subject], str]]] = [
        (
            "What",
            lambda subject: _KINDS.get(subject.kind, subject.kind),
        ),
        ("Stage", lambda subject: _setting(subject, "stage")),
        ("Objective", lambda subject: _setting(subject, "objective")),
        ("Tokens scored by", lambda subject: subject.scored_by or ""),
        ("Rows of the data set", lambda subject: "" if subject.rows is None else number(subject.rows)),
        *((f"Scored tokens, {side}", lambda subject, side=side: _scored(subject, side)) for side in SIDES),
        *((f"Selected, {side}", lambda subject, side=side: _selected(subject, side)) for side in SIDES),
        ("Steps", lambda subject: _last(subject, "step")),
        ("Loss, last logged", lambda subject: _last(subject, "loss")),
        ("Accuracy, last logged", lambda subject: _last(subject, "rewards/accuracies", percent=True)),
        ("Reward margin, last logged", lambda subject: _last(subject, "rewards/margins")),
        ("Folder", lambda subject: str(subject.path)),
    ]
    made = (_fact(key, [value(subject) for subject in subjects]) for key, value in rows)
    return [fact for fact in made if any(fact.values)]


def comparisons(subjects: Sequence[Subject]) -> list[Comparison]:
    """Settings, recipe and versions, nested keys written with dots; without tables that have no row."""
    parts: list[tuple[str, Callable[[Subject], Mapping[str, Any]]]] = [
        ("Settings", lambda subject: subject.settings),
        ("Recipe", lambda subject: subject.recipe),
        ("Versions", lambda subject: subject.versions),
    ]
    tables = []
    for title, part in parts:
        flat = [dict(_flat(part(subject))) for subject in subjects]
        keys = list(dict.fromkeys(key for values in flat for key in values))
        rows = [_fact(key, [values.get(key, "") for values in flat]) for key in keys[:_MOST_ROWS]]
        if rows:
            tables.append(Comparison(title, rows, left_out=len(keys) - len(rows)))
    return tables


def _fact(key: str, values: Sequence[str]) -> Fact:
    cells = [visible(clipped(value, _CELL_CHARACTERS)) for value in values]
    return Fact(one_line(clipped(key, _KEY_CHARACTERS)), cells, differs=len(set(values)) > 1)


def _flat(values: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, plain(value)


def plain(value: Any) -> str:
    """A JSON value as a recipe would have it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or "none"
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, Mapping) else str(value)


def _setting(subject: Subject, name: str) -> str:
    value = subject.settings.get(name)
    return value if isinstance(value, str) else ""


def _scored(subject: Subject, side: str) -> str:
    spread = subject.spreads.get(side)
    if spread is None:
        return ""
    return (
        f"{number(int(spread.tokens))} tokens, mean {number(spread.mean, digits=3)}, std {number(spread.std, digits=3)}"
    )


def _selected(subject: Subject, side: str) -> str:
    """Of the tokens that are shown, and what was asked for."""
    masks = [np.asarray(getattr(pair, side).selected, bool) for pair in subject.pairs]
    tokens = sum(len(mask) for mask in masks)
    asked = selected_ratio(subject.settings, side)
    words = [] if asked is None else [f"asked for {number(100 * asked, digits=3)} %"]
    if tokens:
        share = number(100 * sum(int(mask.sum()) for mask in masks) / tokens, digits=3)
        return ", ".join([f"{share} % of {number(tokens)} tokens in {number(len(masks))} rows", *words])
    logged = _last(subject, f"select/{side}_ratio", percent=True)
    return ", ".join(filter(None, [logged and f"{logged} at the last logged step", *words]))


def _last(subject: Subject, name: str, *, percent: bool = False) -> str:
    for entry in reversed(subject.log):
        value = entry.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return f"{number(100 * value)} %" if percent else number(value)
    return ""
