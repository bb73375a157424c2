"""The leaderboard: a directory with one JSON file per scorer, models and data set.

A file has the schema ``SCHEMA``::

    schema      "sepo.credit_leaderboard/1"
    data_set    name of the data set
    scorer      name of the scorer
    label       name of the models (and of their training), chosen by whoever ran it
    date        date of the measurement, ISO 8601
    models      by role (model, oracle, oracle_base, reference): {model, adapters, ...} or null; local paths are
                shortened to their last part
    recipe      the recipe or recipes that made the models, without secrets, or null
    versions    versions of sepo and of the packages, by name
    data        of the measured rows, see ``sepo.credit.run``
    reading     template, cutoff_len, dtype, end_of_turn
    settings    ratio, bootstrap samples, ...
    levels      token, span, step: responses (those that can be measured at that level), the measures of the scorer,
                each {mean, low, high}, by_type and by_language; null if they were not measured
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sepo import files
from sepo.credit.report import LEVELS, at_level, responses_of
from sepo.errors import SepoError

SCHEMA = "sepo.credit_leaderboard/1"
_FIELDS = ("data_set", "scorer", "label", "date", "models", "recipe", "versions", "data", "reading", "settings")


@dataclass(frozen=True)
class Row:
    """What a row of the leaderboard adds to a result.

    Args:
        label: name of the models.
        date: ISO 8601.
        versions: versions by package.
        recipe: the recipe that made the models, without secrets, or None.
    """

    label: str
    date: str
    versions: Mapping[str, str]
    recipe: Mapping[str, Any] | None


def file_name(data_set: str, scorer: str, label: str) -> str:
    """Return the name of a row's file.

    >>> file_name("demo:fluent", "oracle", "SmolLM2 135M")
    'demo-fluent--oracle--SmolLM2-135M.json'
    """
    return "--".join(re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-") for part in (data_set, scorer, label)) + ".json"


def check_new(folder: Path, data_sets: Sequence[str], scorers: Sequence[str], label: str) -> None:
    """Check that no row exists yet.

    Raises:
        SepoError: naming the first file that exists.
    """
    for data_set in data_sets:
        for scorer in scorers:
            path = folder / file_name(data_set, scorer, label)
            if path.exists():
                raise SepoError(f"--leaderboard: {path} already exists; choose another --label, or add --overwrite.")


def entries(results: Mapping[str, Mapping[str, Any]], row: Row) -> dict[str, dict[str, Any]]:
    """Return the contents of the files by name.

    Args:
        results: the return value of ``sepo.credit.run.measure_sets``.
        row: what is added to the results.
    """
    made = {}
    for data_set, result in results.items():
        for scorer in result["scorers"]:
            found = {level: at_level(result, level) for level in LEVELS}
            data = dict(result["data"])
            if "read" in data:
                data["read"] = {**data["read"], "path": Path(data["read"]["path"]).name}
            made[file_name(data_set, scorer, row.label)] = {
                "schema": SCHEMA,
                "data_set": data_set,
                "scorer": scorer,
                "label": row.label,
                "date": row.date,
                "models": {role: _named(of) for role, of in result["models"].items()},
                "recipe": row.recipe,
                "versions": dict(row.versions),
                "data": data,
                "reading": result["reading"],
                "settings": result["settings"],
                "levels": {
                    level: None if of is None else {"responses": responses_of(of), **of["scorers"][scorer]}
                    for level, of in found.items()
                },
            }
    return made


def _named(model: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return a model without the directories of local paths."""
    if model is None:
        return None

    def name(text: str) -> str:
        return Path(text).name if Path(text).is_absolute() or Path(text).exists() else text

    return {**model, "model": name(model["model"]), "adapters": [name(adapter) for adapter in model["adapters"]]}


def write(folder: Path, made: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    """Write the files and return their paths.

    Raises:
        SepoError: the directory or a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, entry in made.items():
            files.write_whole(folder / name, json.dumps(entry, indent=1) + "\n")
    except OSError as error:
        raise SepoError(f"--leaderboard {folder}: {error}") from error
    return [folder / name for name in made]


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a leaderboard, by data set, best AUROC first.

    Raises:
        SepoError: a file is not a row.
    """
    rows = [_row(path) for path in sorted(folder.glob("*.json"))]
    return sorted(rows, key=lambda row: (row["data_set"], -row["levels"]["token"]["auroc"]["mean"], row["scorer"]))


def _row(path: Path) -> dict[str, Any]:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        if row["schema"] != SCHEMA or not {*_FIELDS, "levels"} <= set(row):
            raise KeyError("schema")
        float(row["levels"]["token"]["auroc"]["mean"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SepoError(
            f"{path} is not a row of a leaderboard ({type(error).__name__}: {error}); expected a file with schema "
            f"{SCHEMA} that `sepo credit --leaderboard` wrote."
        ) from error
    return dict(row)


def table(rows: Sequence[Mapping[str, Any]], data_sets: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of the leaderboard; a data set without rows has one that is marked as not run.

    Args:
        rows: the return value of ``read``.
        data_sets: names of the data sets, in the order of the table; others follow.
    """
    columns = [
        "data set", "scorer", "models", "responses", "AUROC, token", "AUROC, span", "AUROC, step", "recall at ratio",
        "first error, step", "sepo", "date",
    ]  # fmt: skip
    others = [row["data_set"] for row in rows if row["data_set"] not in data_sets]
    cells = []
    for name in dict.fromkeys([*data_sets, *others]):
        found = [row for row in rows if row["data_set"] == name]
        cells += [_cells(row) for row in found] or [[name, "not run", *[""] * (len(columns) - 2)]]
    return columns, cells


def _cells(row: Mapping[str, Any]) -> list[str]:
    levels = {level: row["levels"].get(level) or {} for level in LEVELS}
    all_of = row["data"]["responses"]
    return [
        row["data_set"],
        row["scorer"],
        row["label"],
        f"{all_of:,}",
        *(_cell(levels[level], "auroc", all_of) for level in LEVELS),
        _cell(levels["token"], "recall", all_of),
        _cell(levels["step"], "first_error", all_of),
        str(row["versions"].get("sepo", "")),
        row["date"],
    ]


def _cell(found: Mapping[str, Any], measure: str, all_of: int) -> str:
    """Return a measure with its interval, and the number of responses, n, if it is not of all."""
    if measure not in found:
        return ""
    estimate, count = found[measure], found["responses"]
    of = "" if count == all_of else f", n = {count:,}"
    return f"{estimate['mean']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f}{of})"
