"""Charts of token scores: their accumulation (SePO's Figure 1) and distribution (its Figure 6)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sepo.report.charts import Chart, Line, by_side, look
from sepo.report.subject import SHARES, Subject
from sepo.runs.selection_settings import selected_ratio
from sepo.selection import SIDES

_TAIL = 0.001
"""Share of a side's tokens that may lie beyond the chart, at each end."""


def score_charts(subjects: Sequence[Subject]) -> list[Chart]:
    """Return the charts of the subjects' token scores; none if no tokens are scored."""
    scored = [subject for subject in subjects if subject.spreads]
    return [*_accumulation(subjects, scored), *_distribution(subjects, scored)] if scored else []


def _accumulation(subjects: Sequence[Subject], scored: Sequence[Subject]) -> list[Chart]:
    def lines(subject: Subject, side: str) -> list[Line]:
        sums = np.asarray(subject.spreads[side].accumulated if side in subject.spreads else [], float)
        label, colour = look(subjects, subject, side)
        return [Line(label, SHARES, sums, colour)] if np.isfinite(sums).any() else []

    ends = {str(subject.settings.get("rejected_selects") or "lowest") for subject in scored}
    orders = {"chosen": "highest first", "rejected": f"{' or '.join(sorted(ends))} first"}

    def chart(key: str, side: str | None, drawn: Sequence[Line]) -> Chart:
        order = orders[side] if side else ", ".join(f"{name}: {first}" for name, first in orders.items())
        return Chart(
            key=key,
            title=f"Accumulated scores{f', {side} responses' if side else ''}",
            description=f"Cumulative sum over a response's tokens sorted by score ({order}), mean over rows: the "
            "steeper the beginning, the fewer tokens carry the preference (SePO, Figure 1).",
            x_label="share of a response's tokens",
            y_label="cumulative sum of scores",
            lines=drawn,
            x_percent=True,
            x_limits=(0.0, 1.0),
            marks=_selected_marks(scored, (side,) if side else SIDES),
        )

    return by_side(subjects, lines, chart, "accumulation")


def _selected_marks(subjects: Sequence[Subject], sides: Sequence[str]) -> dict[str, float]:
    ratios = {selected_ratio(subject.settings, side) for subject in subjects for side in sides}
    return {f"{100 * ratio:.3g} % selected": ratio for ratio in sorted(r for r in ratios if r is not None)}


def _distribution(subjects: Sequence[Subject], scored: Sequence[Subject]) -> list[Chart]:
    def lines(subject: Subject, side: str) -> list[Line]:
        if side not in subject.spreads:
            return []
        spread = subject.spreads[side]
        label, colour = look(subjects, subject, side)
        edges, counts = np.asarray(spread.edges, float), np.asarray(spread.counts, float)
        if not counts.sum() > 0:
            return []
        return [Line(label, edges, counts / counts.sum() / np.diff(edges), colour, style="steps")]

    def chart(key: str, side: str | None, drawn: Sequence[Line]) -> Chart:
        limits = _limits(drawn)
        spreads = [spread for subject in scored for name, spread in subject.spreads.items() if side in (None, name)]
        tokens = sum(spread.tokens for spread in spreads)
        return Chart(
            key=key,
            title=f"Distribution of scores{f', {side} responses' if side else ''}",
            description=f"Density of the scores of all {tokens:,} tokens (SePO, Figure 6). The first and the last bin "
            "include all scores beyond them.",
            x_label="score",
            y_label="density",
            lines=drawn,
            x_limits=limits,
        )

    return by_side(subjects, lines, chart, "distribution")


def _limits(lines: Sequence[Line]) -> tuple[float, float] | None:
    """Return the range that contains all but the tails of every line."""
    lows, highs = [], []
    for line in lines:
        share = np.cumsum(line.y * np.diff(line.x))
        inside = np.flatnonzero((share > _TAIL) & (share - line.y * np.diff(line.x) < 1 - _TAIL))
        if len(inside):
            lows.append(line.x[inside[0]])
            highs.append(line.x[inside[-1] + 1])
    return (float(min(lows)), float(max(highs))) if lows else None
