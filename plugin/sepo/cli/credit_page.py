"""The page of `sepo credit` results: one self-contained HTML file in the form of `sepo report`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sepo.credit.report import (
    HEADS,
    LEVELS,
    at_level,
    heading,
    interval,
    kinds_of,
    notes,
    responses_of,
    short_names,
    suite_table,
)
from sepo.credit.run import SCHEMA, SUITE_SCHEMA
from sepo.errors import SepoError
from sepo.report.charts import Chart, Line
from sepo.report.compared import Cell, Opening, ResultTable
from sepo.report.drawing import MOST_SUBJECTS
from sepo.report.files import write_report
from sepo.report.page import Page, page

_MEASURES = tuple(HEADS)


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Read the results that `sepo credit -o` wrote.

    Returns:
        Results by data set.

    Raises:
        SepoError: the file is something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        schema = values["schema"]
        sets = dict(values["sets"]) if schema == SUITE_SCHEMA else {values["data"]["source"]: values}
        if schema not in (SCHEMA, SUITE_SCHEMA) or not all(each["scorers"] for each in sets.values()):
            raise KeyError(str(schema))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SepoError(
            f"{path} has no results of `sepo credit` ({type(error).__name__}: {error}); expected a JSON file with the "
            f"schema {SCHEMA} or {SUITE_SCHEMA}, written with -o."
        ) from error
    return sets


def credit_page(results: Mapping[str, Mapping[str, Any]]) -> Page:
    """Render the page.

    Args:
        results: results by data set, see ``sepo.credit.run.measure_sets``.
    """
    return page([], [], opening=_opening(results))


def write_page(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write the page to a file.

    Raises:
        SepoError: the file cannot be written.
    """
    write_report(path, credit_page(results).text.encode())


def _opening(results: Mapping[str, Mapping[str, Any]]) -> Opening:
    first = next(iter(results.values()))
    columns, rows = suite_table(results)
    tables = [ResultTable("Results", columns, [[Cell(text) for text in row] for row in rows], notes(first)[1])]
    for name, result in results.items():
        tables += [_measures(name, result), *_by(name, result), *_differences(name, result)]
    return Opening(
        title=f"Token-level credit on {', '.join(results)}",
        lead=" ".join([*(_lead(name, result) for name, result in results.items()), *short_names(first["models"])]),
        tables=tables,
        charts=[_chart(name, result) for name, result in results.items()],
        curves="Within each response, the probability that a wrong unit ranks below a right one, and its 95 % "
        "interval. 0.5 is chance.",
        charts_title="Figures",
        heading="Results",
        meanings={
            "AUROC": "Probability that a wrong unit has a lower score than a right one of the same response.",
            "average precision": "Mean over wrong units of the precision at their scores.",
            "precision, recall": "Of the units with the lowest scores, as many as training selects.",
            "first error": "Share of responses whose lowest-ranked unit is the first wrong one.",
            "first-error AUROC": "Share of the right units before the first wrong one that rank above it.",
            "span": "Error spans, and stretches of right tokens of about their length.",
            "step": "Steps of the data set, or lines and sentences. The score of a unit is the mean of its tokens'.",
        },
    )


def _lead(name: str, result: Mapping[str, Any]) -> str:
    data = result["data"]
    return f"{name}: {data['responses']:,} rejected responses with {sum(data['spans'].values()):,} marked errors."


def _measures(name: str, result: Mapping[str, Any]) -> ResultTable:
    ratio = result["settings"]["ratio"]
    rows = [
        [level, scorer, f"{responses_of(found):,}", *(interval(of.get(measure)) for measure in _MEASURES)]
        for level in LEVELS
        if (found := at_level(result, level)) is not None
        for scorer, of in found["scorers"].items()
    ]
    columns = ["level", "scorer", "responses", *(heading(measure, ratio) for measure in _MEASURES)]
    return ResultTable(f"{name}: all measures", columns, [[Cell(text) for text in row] for row in rows])


def _by(name: str, result: Mapping[str, Any]) -> list[ResultTable]:
    made = []
    for by, what in (("by_type", "type of error"), ("by_language", "language")):
        kinds = kinds_of(result, by)
        if len(kinds) > 1:
            scorers = result["scorers"]
            counts = next(iter(scorers.values()))[by]
            rows = [
                [kind, str(counts[kind]["responses"]), *(interval(of[by][kind]["auroc"]) for of in scorers.values())]
                for kind in kinds
            ]
            columns = [what, "responses", *scorers]
            made.append(
                ResultTable(f"{name}: AUROC by {what}", columns, [[Cell(text) for text in row] for row in rows])
            )
    return made


def _differences(name: str, result: Mapping[str, Any]) -> list[ResultTable]:
    rows = []
    for level in LEVELS:
        for entry in (at_level(result, level) or {}).get("differences", []):
            cells = [Cell(level), Cell(f"{entry['first']} - {entry['second']}")]
            rows.append([*cells, *(_marked(entry.get(measure)) for measure in _MEASURES)])
    columns = ["level", "difference", *HEADS.values()]
    note = "First minus second, paired by response; marked if the interval excludes 0."
    return [ResultTable(f"{name}: differences between scorers", columns, rows, note)] if rows else []


def _marked(estimate: Mapping[str, float] | None) -> Cell:
    if estimate is None:
        return Cell("")
    text = interval(estimate, signed=True)
    apart = estimate["low"] > 0 or estimate["high"] < 0
    return Cell(text, "*", "the interval excludes 0") if apart else Cell(text)


def _chart(name: str, result: Mapping[str, Any]) -> Chart:
    lines = []
    for index, scorer in enumerate(list(result["scorers"])[:MOST_SUBJECTS]):
        found = [(place, of) for place, level in enumerate(LEVELS, start=1) if (of := at_level(result, level))]
        estimates = [of["scorers"][scorer]["auroc"] for _, of in found]
        low, high = (np.array([estimate[end] for estimate in estimates], float) for end in ("low", "high"))
        x = np.array([place for place, _ in found], float) + 0.06 * index
        mean = np.array([estimate["mean"] for estimate in estimates], float)
        lines.append(Line(scorer, x, mean, str(index), "points", (low, high)))
    return Chart(
        key="credit-" + "".join(letter if letter.isalnum() else "-" for letter in name.lower()),
        title=f"{name}: AUROC by level",
        description="1: tokens, 2: error spans, 3: steps; the scorers are shifted to the right of each other.",
        x_label="level (1 token, 2 span, 3 step)",
        y_label="AUROC",
        lines=lines,
        x_whole=True,
        x_limits=(0.7, 3.6),
        section="comparison",
    )
