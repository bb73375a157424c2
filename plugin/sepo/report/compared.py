"""The beginning of a page that compares variants: tables of results, curves by variant, and failed runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sepo.report.charts import Chart, Line
from sepo.report.drawing import MOST_SUBJECTS
from sepo.report.subject import Subject
from sepo.report.training_charts import SECONDS, compared_charts
from sepo.runs.folder import is_number
from sepo.selection import SIDES

Log = Sequence[Mapping[str, Any]]
"""Logged metrics of a run in their order, each entry with ``step``."""

_SAME_SHARE = 0.001
"""Shares of selected tokens that differ by no more are equal."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Args:
        text: its text.
        mark: a mark after the text, or the empty string.
        meaning: the meaning of the mark.
    """

    text: str
    mark: str = ""
    meaning: str = ""


@dataclass(frozen=True)
class ResultTable:
    """A table of results; the first cell of a row is its heading.

    Args:
        title: the heading.
        columns: headings of the columns.
        rows: the cells.
        note: a sentence on how to read it, or the empty string.
        swatches: color of each row's variant, an index; None for a row without one. Empty for no colors.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    swatches: Sequence[int | None] = ()


@dataclass(frozen=True)
class Example:
    """A prompt with its responses, as a table.

    Args:
        title: the heading, one line.
        note: a sentence about the outcome, such as the reason why there is no pair.
        prompt: its text.
        columns: headings of the columns.
        rows: the cells, one row for each response.
    """

    title: str
    note: str
    prompt: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Opening:
    """The beginning of the page of a comparison, or the page of pairs.

    Args:
        title: the heading.
        lead: what was compared, in a sentence or two.
        tables: the tables; the first is shown open.
        charts: curves by variant, of the section ``comparison``.
        curves: what the curves show, in a sentence or two.
        failed: a line for each run that failed.
        charts_title: the heading of the charts.
        meanings: meaning of each measure, by label.
        examples: prompts with their responses.
        heading: name of the section in the navigation.
    """

    title: str
    lead: str
    tables: Sequence[ResultTable]
    charts: Sequence[Chart] = ()
    curves: str = ""
    failed: Sequence[str] = ()
    charts_title: str = "Curves"
    meanings: Mapping[str, str] = field(default_factory=dict)
    examples: Sequence[Example] = ()
    heading: str = "Comparison"


@dataclass(frozen=True)
class ResultPoint:
    """A result of a variant.

    Args:
        value: the mean.
        low: lower end of its interval, or None.
        high: upper end of its interval, or None.
    """

    value: float
    low: float | None
    high: float | None


def with_seconds(log: Log, seconds: Mapping[int, float]) -> list[dict[str, Any]]:
    """Return a log whose entries have the seconds of training, where these are known.

    Args:
        log: logged metrics.
        seconds: seconds of training by step.
    """
    return [{**entry, SECONDS: seconds[entry["step"]]} if entry["step"] in seconds else dict(entry) for entry in log]


def mean_log(logs: Sequence[Log]) -> list[dict[str, Any]]:
    """Return the mean of the logs of a variant's runs.

    Args:
        logs: one log for each seed.

    Returns:
        An entry for each step that all logs have, with the means of the metrics that all have there.

    Example:
        >>> mean_log([[{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}], [{"step": 1, "loss": 1.0}]])
        [{'step': 1, 'loss': 0.75}]
    """
    merged = [_by_step(log) for log in logs]
    steps = sorted(set.intersection(*(set(each) for each in merged))) if merged else []
    entries = []
    for step in steps:
        found = [each[step] for each in merged]
        names = [name for name in found[0] if all(name in values for values in found)]
        entries.append({"step": step, **{name: float(np.mean([values[name] for values in found])) for name in names}})
    return entries


def _by_step(log: Log) -> dict[int, dict[str, float]]:
    """Return the metrics by step: training and evaluation are logged as separate entries of a step."""
    found: dict[int, dict[str, float]] = {}
    for entry in log:
        numbers = {name: value for name, value in entry.items() if name != "step" and is_number(value)}
        found.setdefault(entry["step"], {}).update(numbers)
    return found


def selected_share(log: Log) -> float | None:
    """Return the mean share of the responses' tokens that trained the policy, over both sides and all logged steps.

    A run without selection trains on all tokens: 1.0. None if nothing was logged.

    Example:
        >>> selected_share([{"step": 1, "select/chosen_ratio": 0.25, "select/rejected_ratio": 0.5}])
        0.375
        >>> selected_share([{"step": 1, "loss": 0.5}]), selected_share([])
        (1.0, None)
    """
    if not log:
        return None
    sides = [[entry[name] for entry in log if name in entry] for name in (f"select/{side}_ratio" for side in SIDES)]
    known = [float(np.mean(values)) for values in sides if values]
    return float(np.mean(known)) if known else 1.0


def curves(logs: Mapping[str, Log]) -> list[Chart]:
    """Return charts of the metrics of training by step and by seconds of training, a curve for each variant.

    Args:
        logs: the mean log of each variant by its name, at most ``MOST_SUBJECTS``.
    """
    return compared_charts([Subject(name, Path(name), "run", log=log) for name, log in logs.items()])


def result_charts(
    key: str,
    label: str,
    results: Mapping[str, ResultPoint],
    *,
    shares: Mapping[str, float],
    seconds: Mapping[str, float],
    baseline: str,
) -> list[Chart]:
    """Return charts of a result against the seconds of training and against the share of selected tokens.

    Args:
        key: key of the charts.
        label: name of the measure, a share.
        results: result by variant, in the order of the colors.
        shares: share of selected tokens by variant. There is no chart by it if the variants' shares are equal.
        seconds: seconds of training by variant. There is no chart by it with fewer than two variants.
        baseline: name of the baseline.
    """
    title, charts = f"Held-out {label}", []
    lines = _points(results, seconds, baseline)
    if sum(len(line.x) for line in lines) > 1:
        charts.append(
            Chart(
                key=f"comparison-{key}-by-seconds",
                title=f"{title} by seconds of training",
                description="Mean on the held-out rows after training, with its interval, against the mean duration of "
                "a run's training.",
                x_label="seconds of training",
                y_label=label,
                lines=lines,
                y_percent=True,
                section="comparison",
            )
        )
    lines = _points(results, shares, baseline)
    if lines and np.ptp(np.concatenate([line.x for line in lines])) > _SAME_SHARE:
        charts.append(
            Chart(
                key=f"comparison-{key}-by-selected",
                title=f"{title} by selected share",
                description="Mean on the held-out rows after training, with its interval, against the share of the "
                "responses' tokens that trained the policy, both sides, over all logged steps. Variants without "
                "selection train on all tokens.",
                x_label="selected share",
                y_label=label,
                lines=lines,
                x_percent=True,
                y_percent=True,
                section="comparison",
            )
        )
    return charts


def _points(results: Mapping[str, ResultPoint], places: Mapping[str, float], baseline: str) -> list[Line]:
    """Return a point for each variant that has a place; in two groups if there are more variants than colors."""
    names = [name for name in results if name in places]
    if len(results) <= MOST_SUBJECTS:
        groups = [(name, str(index), [name]) for index, name in enumerate(results)]
    else:
        others = sorted((name for name in names if name != baseline), key=lambda name: places[name])
        groups = [(baseline, "0", [baseline]), ("other variants", "1", others)]
    lines = []
    for label, colour, group in groups:
        known = [name for name in group if name in names]
        if known:
            x, y = np.array([places[name] for name in known]), np.array([results[name].value for name in known])
            lines.append(Line(label, x, y, colour, "points", _interval([results[name] for name in known])))
    return lines


def _interval(points: Sequence[ResultPoint]) -> tuple[np.ndarray, np.ndarray]:
    low = np.array([np.nan if point.low is None else point.low for point in points], float)
    high = np.array([np.nan if point.high is None else point.high for point in points], float)
    return low, high
