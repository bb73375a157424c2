"""A plot of the results: AUROC and recall of every scorer with intervals, overall and by type of error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sepo.credit.report import heading
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
            means = [estimate["mean"] for estimate in estimates]
            # A percentile interval need not contain the mean of a skewed sample.
            below = [max(0.0, estimate["mean"] - estimate["low"]) for estimate in estimates]
            above = [max(0.0, estimate["high"] - estimate["mean"]) for estimate in estimates]
            axes.errorbar(
                means,
                heights,
                xerr=[below, above],
                fmt=_MARKERS[number % len(_MARKERS)],
                color=_COLORS[number % len(_COLORS)],
                label=name,
                capsize=3,
                markersize=5,
            )
        axes.set_xlim(0, 1.02)
        axes.set_xlabel(heading(measure, result["settings"]["ratio"]))
        axes.grid(axis="x", alpha=0.3)
    left.axvline(0.5, color="0.6", linestyle="--", linewidth=1)
    left.set_yticks(range(len(rows)), [f"{row}\n({_responses(result, row)} responses)" for row in rows])
    left.set_ylim(len(rows) - 0.5, -0.5)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=min(5, len(scorers)))
    return figure


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
