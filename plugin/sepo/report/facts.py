"""Tables of the page: overview, settings, recipes and versions of the subjects, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sepo.errors import SepoError
from sepo.report.subject import Subject
from sepo.report.visible import clipped, number, one_line, visible
from sepo.runs.selection_settings import recorded_selector, selected_ratio
from sepo.runs.settings_texts import recorded_objective, recorded_weight
from sepo.selection import SIDES

_CELL_CHARACTERS = 600
_KEY_CHARACTERS = 120
_MOST_ROWS = 400
"""Limits of cells and tables, as a recipe may contain anything."""
_SELECTED = "The selected tokens of each response and their scores:"
_WEIGHED = (
    "The outline of a token is as strong as its weight in the loss, relative to the largest weight of the response; "
    "negative weights have a dashed one."
)
_KINDS = {"run": "training run", "store": "store of token scores"}


@dataclass(frozen=True)
class Fact:
    """A row of a table.

    Args:
        key: name of the row.
        values: one value for each subject, in their order; the empty string if it has none.
        differs: whether the values of the subjects differ.
    """

    key: str
    values: Sequence[str]
    differs: bool = False


@dataclass(frozen=True)
class Comparison:
    """A table with a column for each subject.

    Args:
        title: the heading.
        rows: the rows.
        left_out: number of rows beyond the limit, which are not shown.
    """

    title: str
    rows: Sequence[Fact]
    left_out: int = 0


def overview(subjects: Sequence[Subject]) -> list[Fact]:
    """Return the rows of the overview, without those that are empty for all subjects."""
    rows: list[tuple[str, Callable[[Subject], str]]] = [
        (
            "Type",
            lambda subject: _KINDS.get(subject.kind, subject.kind),
        ),
        ("Stage", lambda subject: _setting(subject, "stage")),
        ("Objective", lambda subject: recorded_objective(subject.settings)),
        ("Tokens scored by", lambda subject: subject.scored_by or ""),
        ("Token weight", lambda subject: recorded_weight(subject.settings)),
        ("Rows of the data set", lambda subject: "" if subject.rows is None else number(subject.rows)),
        *((f"Scored tokens, {side}", lambda subject, side=side: _scored(subject, side)) for side in SIDES),
        ("Scores against noise", _chance),
        ("Errors of credit_data", _credit),
        *((f"Selected, {side}", lambda subject, side=side: _selected(subject, side)) for side in SIDES),
        *((f"Effective tokens, {side}", lambda subject, side=side: _effective(subject, side)) for side in SIDES),
        ("Pairs without selected tokens", lambda subject: _last(subject, "objective/empty_pair", percent=True)),
        ("Steps", lambda subject: _last(subject, "step")),
        ("Loss, last logged", lambda subject: _last(subject, "loss")),
        ("Accuracy, last logged", lambda subject: _last(subject, "rewards/accuracies", percent=True)),
        ("Reward margin, last logged", lambda subject: _last(subject, "rewards/margins")),
        ("Warnings", lambda subject: "; ".join(subject.warnings)),
        ("Directory", lambda subject: str(subject.path)),
    ]
    made = (_fact(key, [value(subject) for subject in subjects]) for key, value in rows)
    return [fact for fact in made if any(fact.values)]


def comparisons(subjects: Sequence[Subject]) -> list[Comparison]:
    """Return tables of settings, recipe and versions, with dots in nested keys; without empty tables."""
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
    """Format a JSON value as in a recipe."""
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


def _chance(subject: Subject) -> str:
    if subject.chance is None:
        return ""
    return ("cannot be told from noise: " if subject.chance.is_noise else "") + subject.chance.text()


def _credit(subject: Subject) -> str:
    """Format the logged AUROC on marked rows; a log may have any content."""
    credit = subject.credit or {}
    auroc = credit.get("auroc")
    if not isinstance(auroc, Mapping) or not all(isinstance(auroc.get(end), float) for end in ("mean", "low", "high")):
        return ""
    interval = f"{auroc['low']:.3f} to {auroc['high']:.3f}"
    return f"AUROC {auroc['mean']:.3f} ({interval}), {credit.get('responses')} responses of {credit.get('source')}"


def _selected(subject: Subject, side: str) -> str:
    """Format the share of selected tokens among the shown rows, and the configured ratio or rule."""
    masks = [np.asarray(getattr(pair, side).selected, bool) for pair in subject.pairs]
    tokens = sum(getattr(pair, side).counted for pair in subject.pairs)
    words = _rule(subject.settings, side)
    if tokens:
        share = number(100 * sum(int(mask.sum()) for mask in masks) / tokens, digits=3)
        return ", ".join([f"{share} % of {number(tokens)} tokens in {number(len(masks))} rows", *words])
    logged = _last(subject, f"select/{side}_ratio", percent=True)
    return ", ".join(filter(None, [logged and f"{logged} at the last logged step", *words]))


def _rule(settings: Mapping[str, Any], side: str) -> list[str]:
    """Return what determines the number of a side's selected tokens, in words; empty if it is unknown."""
    ratio = selected_ratio(settings, side)
    if ratio is not None:
        return [f"ratio {number(100 * ratio, digits=3)} %"]
    try:
        selector = recorded_selector(settings)
    except SepoError:
        return []
    if selector is None or selector.reads_ratios:
        return []
    if selector.count == "shorter":
        return ["as many as the shorter response has"]
    lowest = side == "rejected" and settings.get("rejected_selects") == "lowest"
    return [f"scores {'below' if lowest else 'above'} the mean of the response"]


def _effective(subject: Subject, side: str) -> str:
    """Format the effective number of tokens among the shown rows, or the last logged one."""
    shown = [getattr(pair, side) for pair in subject.pairs]
    weighed = [(answer.effective, int(answer.selected.sum())) for answer in shown if answer.effective is not None]
    if weighed:
        effective, selected = (float(np.mean(column)) for column in zip(*weighed, strict=True))
        return (
            f"{number(effective, digits=3)} of {number(selected, digits=3)} selected tokens, mean of "
            f"{number(len(weighed))} rows"
        )
    return _last(subject, f"select/{side}_effective")


def selection_sentences(subjects: Sequence[Subject]) -> str:
    """Return which tokens the subjects select, and how their weights are shown."""
    ends = {
        str(subject.settings.get("rejected_selects") or "lowest")
        for subject in subjects
        if subject.settings.get("select", "unknown") is not None
    }
    texts = {
        frozenset(): "The tokens of each response; all of them train the policy.",
        frozenset({"highest"}): f"{_SELECTED} in both responses the highest scores are selected.",
        frozenset({"lowest"}): f"{_SELECTED} in chosen responses the highest scores are selected, in rejected "
        "responses the lowest.",
    }
    both = (
        f"{_SELECTED} in chosen responses the highest scores are selected, in rejected responses the lowest or the "
        "highest, depending on the token scorer."
    )
    weighed = any(
        side.weights is not None
        for subject in subjects
        for pair in subject.pairs
        for side in (pair.chosen, pair.rejected)
    )
    return texts.get(frozenset(ends), both) + (f" {_WEIGHED}" if weighed else "")


def _last(subject: Subject, name: str, *, percent: bool = False) -> str:
    for entry in reversed(subject.log):
        value = entry.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return f"{number(100 * value)} %" if percent else number(value)
    return ""
