"""The page: one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from sepo import __version__
from sepo.report.charts import Chart, table
from sepo.report.compared import Opening
from sepo.report.drawing import svg
from sepo.report.facts import comparisons, overview, selection_sentences
from sepo.report.heat_map import HeatMap, heat_map
from sepo.report.score_charts import score_charts
from sepo.report.subject import Subject
from sepo.report.training_charts import training_charts
from sepo.report.visible import clipped, number, one_line, visible

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE_BYTES = 4_800_000
"""Maximum size of a page; a page of 5 MB opens instantly and can be sent by mail."""
PAGE_MARK = '<meta name="generator" content="sepo report">'
"""Mark near the beginning of every page, which identifies it as a report."""
_NAME_CHARACTERS = 80
_MOST_MISSING = 40
_AROUND_ROWS = 20_000
"""Upper bound on the bytes around the rows that the page has only if there are rows."""


def charts(subjects: Sequence[Subject]) -> list[Chart]:
    """Return all charts of a report, in the order of the page."""
    return [*score_charts(subjects), *training_charts(subjects)]


def with_unique_names(subjects: Sequence[Subject]) -> list[Subject]:
    """Return the subjects with unique names of one line; equal names are replaced by distinct ends of the paths.

    Example:
        >>> from pathlib import Path
        >>> [s.name for s in with_unique_names([Subject("run", Path(f"/data/{n}/run"), "run") for n in "ab"])]
        ['a/run', 'b/run']
    """
    names = [clipped(one_line(subject.name), _NAME_CHARACTERS) or "unnamed" for subject in subjects]
    if len(set(names)) < len(names):
        twice = {name for name in names if names.count(name) > 1}
        tails = _tails([subject.path.absolute().parts for subject in subjects])
        named = zip(names, tails, subjects, strict=True)
        names = [
            name if name not in twice else tail if subject.path.name == subject.name else f"{name} ({tail})"
            for name, tail, subject in named
        ]
    counted = [
        f"{name} [{names[: i + 1].count(name)}]" if names.count(name) > 1 else name for i, name in enumerate(names)
    ]
    return [replace(subject, name=name) for subject, name in zip(subjects, counted, strict=True)]


def _tails(paths: Sequence[Sequence[str]]) -> list[str]:
    """Return the shortest ends of the paths that are unique."""
    longest = max(len(path) for path in paths)
    for parts in range(1, longest + 1):
        ends = [tuple(path[-parts:]) for path in paths]
        if len(set(ends)) == len(set(map(tuple, paths))):
            break
    return [clipped(one_line("/".join(end)), _NAME_CHARACTERS) for end in ends]


@dataclass(frozen=True)
class Page:
    """A rendered page.

    Args:
        text: HTML without any URL that a browser would load.
        summary: number of rows that it shows, in words.
    """

    text: str
    summary: str


def page(
    subjects: Sequence[Subject],
    drawn: Sequence[Chart],
    *,
    opening: Opening | None = None,
    limit: int = PAGE_BYTES,
) -> Page:
    """Render the page.

    Args:
        subjects: the subjects of the report, with unique names.
        drawn: return value of ``charts``.
        opening: the beginning of the page of a comparison; None for a report of the subjects alone.
        limit: maximum size in bytes of UTF-8; rows of the heat map are omitted to meet it.

    Returns:
        The page and its summary.
    """
    every = [*(opening.charts if opening else ()), *drawn]
    plots = [{"chart": chart, "svg": svg(chart), "table": table(chart)} for chart in every]
    # A page without rows has a note instead, which is shorter than the markup around rows.
    around = len(_render(subjects, plots, HeatMap("", 0, 0, None), opening).encode()) + _AROUND_ROWS
    rows = heat_map(subjects, budget=limit - around)
    of = max(rows.rows or 0, rows.sampled)
    summary = f"{number(rows.shown)} of {number(of)} rows" if of else "no rows"
    return Page(_render(subjects, plots, rows, opening), summary)


def _render(
    subjects: Sequence[Subject], plots: Sequence[dict[str, Any]], rows: HeatMap, opening: Opening | None
) -> str:
    from markupsafe import Markup

    script, style = _asset("report.js"), _asset("report.css")
    sections: dict[str, list[dict[str, Any]]] = {"comparison": [], "scores": [], "training": []}
    for plot in plots:
        sections[plot["chart"].section].append({**plot, "svg": Markup(plot["svg"])})
    return (
        _environment()
        .get_template("report.html")
        .render(
            mark=Markup(PAGE_MARK),
            script=Markup(script),
            script_hash=_hash(script),
            style=Markup(style),
            style_hash=_hash(style),
            version=__version__,
            opening=opening,
            names=[subject.name for subject in subjects],
            missing=[_missing(subject) for subject in subjects],
            overview=overview(subjects),
            selection=selection_sentences(subjects),
            comparisons=comparisons(subjects),
            sections=sections,
            rows=rows,
            rows_data=Markup(rows.text),
        )
    )


def _missing(subject: Subject) -> list[str]:
    sentences = [clipped(text, 600) for text in subject.missing]
    more = len(sentences) - _MOST_MISSING
    return sentences if more <= 0 else [*sentences[:_MOST_MISSING], f"And {more:,} more."]


def _hash(text: str) -> str:
    """Return the hash of a script or style sheet in the format of a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _asset(name: str) -> str:
    return (files("sepo.report") / "templates" / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        return value if isinstance(value, Markup) else visible(str(value))

    environment = Environment(
        loader=PackageLoader("sepo.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=shown,
    )
    environment.filters["number"] = number
    environment.filters["breakable"] = lambda text: Markup(".<wbr>").join(visible(text).split("."))
    return environment
