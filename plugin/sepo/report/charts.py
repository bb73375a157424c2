"""Charts as data: lines, labels, and an equivalent table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sepo.report.subject import Subject
from sepo.report.visible import number
from sepo.selection import SIDES

_TABLE_ROWS = 100
_POINTS = 600
"""Maximum points of a line; longer lines are thinned evenly."""


@dataclass(frozen=True)
class Line:
    """One curve.

    Args:
        label: label in the legend.
        x: [N], or [N + 1] for ``steps``: the edges of the bins.
        y: [N]; NaN for missing values.
        colour: a key of ``drawing.COLOURS``: ``chosen``, ``rejected``, or the index of a subject as a string.
        style: ``line``, ``points`` (few values, such as those of evaluations) or ``steps`` (a histogram).
        interval: lower and upper ends of the points' intervals, [N] each, or None. For ``points`` only.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    colour: str
    style: str = "line"
    interval: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class Chart:
    """One plot with one pair of axes.

    Args:
        key: name in files and identifiers: lower-case letters, digits and hyphens.
        title: the title.
        description: one or two sentences on how to read it.
        x_label: label of the horizontal axis.
        y_label: label of the vertical axis.
        lines: the curves, at least one.
        x_percent: whether the horizontal axis is a share, formatted in percent.
        y_percent: whether the vertical axis is a share, formatted in percent.
        x_whole: whether the horizontal axis has whole numbers only.
        x_limits: limits of the horizontal axis, or None.
        marks: positions of vertical lines, by label.
        section: section of the page: ``scores``, ``training`` or ``comparison``.
    """

    key: str
    title: str
    description: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    x_percent: bool = False
    y_percent: bool = False
    x_whole: bool = False
    x_limits: tuple[float, float] | None = None
    marks: Mapping[str, float] = field(default_factory=dict)
    section: str = "scores"


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        columns: the headings.
        rows: the cells.
        note: a note on omitted rows, or the empty string.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def thinned(count: int, most: int = _POINTS) -> np.ndarray:
    """Return the indices of at most ``most`` of ``count`` points, evenly spaced, including the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)) if count else np.arange(0)


def by_side(
    subjects: Sequence[Subject], make: Callable[[Subject, str], Sequence[Line]], build: Callable[..., Chart], key: str
) -> list[Chart]:
    """Build charts of a quantity of both sides: one chart for a single subject, one chart per side for several.

    Args:
        subjects: the subjects of the report.
        make: ``make(subject, side)`` returns the lines of one side.
        build: ``build(key, side, lines)`` returns the chart; ``side`` is None for both sides.
        key: key of the chart; the side is appended to the key of a chart of one side.

    Returns:
        The charts that have at least one line.
    """
    if len(subjects) == 1:
        lines = [line for side in SIDES for line in make(subjects[0], side)]
        return [build(key, None, lines)] if lines else []
    by = {side: [line for subject in subjects for line in make(subject, side)] for side in SIDES}
    return [build(f"{key}-{side}", side, lines) for side, lines in by.items() if lines]


def look(subjects: Sequence[Subject], subject: Subject, side: str | None) -> tuple[str, str]:
    """Return label and color of a subject's line: by side for a single subject, otherwise by subject."""
    if len(subjects) == 1:
        return (side or subject.name, side or "0")
    return subject.name, str([other is subject for other in subjects].index(True))


def table(chart: Chart) -> Table:
    """Return the chart's numbers: one row for each x if all lines share them, otherwise one for each point."""
    if chart.lines[0].style == "steps":
        return _bins(chart)
    if any(line.interval is not None for line in chart.lines):
        return _points_with_intervals(chart)
    first = chart.lines[0]
    x_text = [_cell(value, percent=chart.x_percent) for value in first.x]
    if all(np.array_equal(line.x, first.x) for line in chart.lines):
        kept = thinned(len(first.x), _TABLE_ROWS)
        rows = [[x_text[i], *(_cell(line.y[i], percent=chart.y_percent) for line in chart.lines)] for i in kept]
        return Table([chart.x_label, *(line.label for line in chart.lines)], rows, _left_out(len(kept), len(first.x)))
    points = [
        [line.label, _cell(x, percent=chart.x_percent), _cell(y, percent=chart.y_percent)]
        for line in chart.lines
        for x, y in zip(line.x, line.y, strict=True)
    ]
    kept = thinned(len(points), _TABLE_ROWS)
    columns = ["curve", chart.x_label, chart.y_label]
    return Table(columns, [points[i] for i in kept], _left_out(len(kept), len(points)))


def _points_with_intervals(chart: Chart) -> Table:
    rows = []
    for line in chart.lines:
        none = np.full(len(line.x), np.nan)
        for x, *ys in zip(line.x, line.y, *(line.interval or (none, none)), strict=True):
            ends = [_cell(y, percent=chart.y_percent) if np.isfinite(y) else "–" for y in ys]
            rows.append([line.label, _cell(x, percent=chart.x_percent), *ends])
    kept = thinned(len(rows), _TABLE_ROWS)
    columns = ["curve", chart.x_label, chart.y_label, "from", "to"]
    return Table(columns, [rows[i] for i in kept], _left_out(len(kept), len(rows)))


def _bins(chart: Chart) -> Table:
    rows = [
        [line.label, number(low), number(high), _cell(y, percent=chart.y_percent)]
        for line in chart.lines
        for low, high, y in zip(line.x[:-1], line.x[1:], line.y, strict=True)
    ]
    kept = thinned(len(rows), 2 * _TABLE_ROWS)
    columns = ["curve", f"{chart.x_label} from", "to", chart.y_label]
    return Table(columns, [rows[i] for i in kept], _left_out(len(kept), len(rows)))


def _cell(value: float, *, percent: bool) -> str:
    if percent and np.isfinite(value):
        return f"{100 * value:.3g} %"
    return number(int(value) if float(value).is_integer() else float(value))


def _left_out(kept: int, points: int) -> str:
    return "" if kept == points else f"{kept} of {points:,} points, evenly spaced."
