"""Plots of the results: AUROC and recall of every scorer with intervals, by type of error, or by data set and level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sepo.credit.report import LEVELS, at_level, heading
from sepo.errors import SepoError

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
"""The palette of Okabe and Ito, which color-blind readers can distinguish."""

_MARKERS = "osD^vPX"
ALL = "all errors"


def draw(result: Mapping[str, Any]) -> Figure:
    """Plot the results of a measurement.

    Args:
        result: the return value of ``sepo.credit.run.measure``.

    Returns:
        A figure with AUROC (0.5 is chance) on the left and recall at the ratio on the right; one row for all errors and
        one for each type, with a point and its interval for each scorer.
    """
    scorers, data = result["scorers"], result["data"]
    kinds = sorted(next(iter(scorers.values()))["by_type"], key=lambda kind: (-data["spans"].get(kind, 0), kind))
    kinds = kinds if len(kinds) > 1 else []
    rows = [ALL, *kinds]
    step = 0.8 / max(1, len(scorers))
    figure = Figure(figsize=(10, 1.4 + 0.32 * len(rows) * max(2, len(scorers))), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, measure in ((left, "auroc"), (right, "recall")):
        for number, (name, of) in enumerate(scorers.items()):
            estimates = [of[measure], *(of["by_type"][kind][measure] for kind in kinds)]
            heights = [row + (number - (len(scorers) - 1) / 2) * step for row in range(len(rows))]
            _points(axes, estimates, heights, name=name, number=number)
        _share_axis(axes, heading(measure, result["settings"]["ratio"]))
    left.axvline(0.5, color="0.6", linestyle="--", linewidth=1)
    left.set_yticks(range(len(rows)), [f"{row}\n({_responses(result, row)} responses)" for row in rows])
    left.set_ylim(len(rows) - 0.5, -0.5)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=min(5, len(scorers)))
    return figure


def draw_suite(results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Plot the AUROC of every scorer on several data sets, by token, error span and step.

    Args:
        results: the return value of ``sepo.credit.run.measure_sets``.

    Returns:
        A figure with a panel for each level and a row for each data set.
    """
    sets, scorers = list(results), list(next(iter(results.values()))["scorers"])
    step = 0.8 / max(1, len(scorers))
    figure = Figure(figsize=(12, 1.4 + 0.32 * len(sets) * max(2, len(scorers))), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(LEVELS), sharey=True)
    for axes, level in zip(panels, LEVELS, strict=True):
        for number, name in enumerate(scorers):
            found = [(row, at_level(results[each], level)) for row, each in enumerate(sets)]
            points = [(row, of["scorers"][name]["auroc"]) for row, of in found if of is not None]
            heights = [row + (number - (len(scorers) - 1) / 2) * step for row, _ in points]
            _points(axes, [estimate for _, estimate in points], heights, name=name, number=number)
        _share_axis(axes, f"AUROC by {level}")
        axes.axvline(0.5, color="0.6", linestyle="--", linewidth=1)
    first = panels[0]
    first.set_yticks(range(len(sets)), [f"{name}\n({_responses(results[name], ALL)} responses)" for name in sets])
    first.set_ylim(len(sets) - 0.5, -0.5)
    figure.legend(*first.get_legend_handles_labels(), loc="outside upper center", ncols=min(5, len(scorers)))
    return figure


def _points(
    axes: Axes, estimates: Sequence[Mapping[str, float]], heights: Sequence[float], *, name: str, number: int
) -> None:
    """Plot the estimates of a scorer, its number among the scorers, with their intervals."""
    axes.errorbar(
        [estimate["mean"] for estimate in estimates],
        heights,
        xerr=_bars(estimates),
        fmt=_MARKERS[number % len(_MARKERS)],
        color=_COLORS[number % len(_COLORS)],
        label=name,
        capsize=3,
        markersize=5,
    )


def _share_axis(axes: Axes, label: str) -> None:
    """Show shares from 0 to 1 along x."""
    axes.set_xlim(0, 1.02)
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)


def _bars(estimates: Sequence[Mapping[str, float]]) -> list[list[float]]:
    """Return the lengths of the bars below and above; a percentile interval need not contain the mean."""
    return [
        [max(0.0, estimate["mean"] - estimate["low"]) for estimate in estimates],
        [max(0.0, estimate["high"] - estimate["mean"]) for estimate in estimates],
    ]


def _responses(result: Mapping[str, Any], row: str) -> int:
    if row == ALL:
        return int(result["data"]["responses"])
    return int(next(iter(result["scorers"].values()))["by_type"][row]["responses"])


def save(figure: Figure, path: Path) -> None:
    """Write a figure to a file.

    Raises:
        SepoError: the file cannot be written, or matplotlib does not support its format.
    """
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise SepoError(f"--figure {path}: {error}") from error
