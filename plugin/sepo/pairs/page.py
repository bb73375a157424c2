"""The page of `sepo report` for pairs: what was sampled, how it was judged, and examples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sepo.errors import SepoError
from sepo.pairs.directory import SAMPLES, SETTINGS
from sepo.pairs.status import pairs_progress
from sepo.pairs.summary import PairsSummary, summary_rows
from sepo.report.charts import Chart, Line
from sepo.report.compared import Cell, Example, Opening, ResultTable
from sepo.report.facts import plain
from sepo.report.visible import clipped, number, one_line

_EXAMPLES = 30
_RESPONSES = 10
_PROMPT_CHARACTERS, _RESPONSE_CHARACTERS, _TITLE_CHARACTERS = 4_000, 2_000, 120
"""Limits of the examples, with which a page stays under 5 MB."""
_BINS = 40
_COLOURS = {"all responses": "0", "pairs": "0"}
"""Colors of the curves that are of neither side."""


def pairs_opening(folder: Path) -> Opening:
    """Return the page of finished pairs, from their files.

    Args:
        folder: the directory of the pairs.

    Raises:
        SepoError: the pairs are not finished, or a file cannot be read.
    """
    progress = pairs_progress(folder)
    if progress["summary"] is None:
        raise SepoError(
            f"the pairs in '{folder}' are not finished ({progress['judged']:,} of {progress['responses']:,} responses "
            "are judged); run sepo pairs with the same recipe to the end."
        )
    summary = _summary(folder, progress["summary"])
    stored = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    notes = stored.get("notes") or {}
    numbers, examples = _read(folder, summary.prompts)
    policy, judge = notes.get("policy") or {}, notes.get("judge") or {}
    model = ", ".join(map(str, [policy.get("model", "unknown"), *policy.get("adapters", ())]))
    return Opening(
        title=clipped(f"Pairs in {one_line('/'.join(folder.absolute().parts[-2:]))}", _TITLE_CHARACTERS),
        lead=f"{number(summary.responses)} responses of {one_line(model)} to {number(summary.prompts)} prompts of "
        f"{one_line(str(notes.get('prompts', 'unknown')))}, judged by {one_line(str(judge.get('judge', 'unknown')))}; "
        "of each prompt the best response against the worst.",
        tables=[_table("Summary", summary_rows(summary)), _table("Settings", _flat(stored["settings"]))],
        charts=_charts(numbers),
        curves="Shares of the responses, by reward and by length in tokens, and of the pairs, by margin.",
        examples=examples,
        heading="Pairs",
    )


def _summary(folder: Path, values: Mapping[str, Any]) -> PairsSummary:
    try:
        return PairsSummary.from_dict(values)
    except KeyError as error:
        raise SepoError(f"the summary of '{folder}' lacks {error}; remove it, and sepo pairs writes it.") from error


def _table(title: str, rows: Sequence[tuple[str, str]]) -> ResultTable:
    return ResultTable(
        title, [title.lower(), "value"], [[Cell(name), Cell(clipped(one_line(text), 600))] for name, text in rows]
    )


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in values.items():
        rows += _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else [(f"{before}{name}", plain(value))]
    return rows


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with open(file, encoding="utf-8") as lines:
            for place, line in enumerate(lines, start=1):
                try:
                    row = json.loads(line)
                    row["responses"][0]["reward"]
                except (ValueError, KeyError, TypeError, IndexError) as error:
                    raise SepoError(f"{file}, line {place} is damaged ({error!r}); restore the file.") from error
                yield row
    except (OSError, UnicodeDecodeError) as error:
        raise SepoError(f"{file} cannot be read ({error}); restore the file.") from error


def _read(folder: Path, prompts: int) -> tuple[dict[str, dict[str, list[float]]], list[Example]]:
    """Return rewards, lengths and margins by curve, and examples spread over the prompts."""
    found: dict[str, dict[str, list[float]]] = {
        "reward": {"all responses": [], "chosen": [], "rejected": []},
        "tokens": {"all responses": [], "chosen": [], "rejected": []},
        "margin": {"pairs": []},
    }
    shown = {int(place * prompts / _EXAMPLES) for place in range(_EXAMPLES)}
    examples = []
    for place, row in enumerate(_lines(folder / SAMPLES)):
        responses = row["responses"]
        sides = {name: row.get(name) for name in ("chosen", "rejected")}
        for kind in ("reward", "tokens"):
            found[kind]["all responses"] += [float(each[kind]) for each in responses]
            for name, which in sides.items():
                found[kind][name] += [] if which is None else [float(responses[which][kind])]
        if sides["chosen"] is not None and sides["rejected"] is not None:
            chosen, rejected = (responses[which]["reward"] for which in (sides["chosen"], sides["rejected"]))
            found["margin"]["pairs"].append(float(chosen) - float(rejected))
        if place in shown:
            examples.append(_example(row, sides))
    return found, examples


def _example(row: Mapping[str, Any], sides: Mapping[str, int | None]) -> Example:
    expected = [f"expected: {plain(row['expected'])}"] if "expected" in row else []
    result = f"no pair: {row['no_pair']}" if row.get("no_pair") else "a pair"
    names = {which: name for name, which in sides.items() if which is not None}
    responses = list(enumerate(row["responses"]))
    shown = [(place, each) for place, each in responses if place < _RESPONSES or place in names]
    more = len(responses) - len(shown)
    return Example(
        title=clipped(one_line(str(row["prompt"])), _TITLE_CHARACTERS),
        note="; ".join([result, *expected, *([f"{more:,} more responses are not shown"] if more else [])]),
        prompt=clipped(str(row["prompt"]), _PROMPT_CHARACTERS),
        columns=["sample", "reward", "tokens", "response"],
        rows=[
            [
                " ".join([str(each.get("sample", place)), *([names[place]] if place in names else [])]),
                number(float(each["reward"])),
                f"{each['tokens']:,}" + ("" if each["finished"] else ", truncated"),
                clipped(str(each["text"]), _RESPONSE_CHARACTERS),
            ]
            for place, each in shown
        ],
    )


def _charts(numbers: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Chart]:
    texts = {
        "reward": ("Rewards", "reward", "responses", "Share of the responses in each bin of rewards."),
        "tokens": ("Lengths", "tokens", "responses", "Share of the responses in each bin of lengths, in tokens."),
        "margin": ("Margins", "difference of the rewards", "pairs",
                   "Share of the pairs in each bin of margins."),
    }  # fmt: skip
    charts = []
    for kind, (title, label, what, description) in texts.items():
        values = {name: np.asarray(each, float) for name, each in numbers[kind].items() if each}
        if not values:
            continue
        edges = _edges(np.concatenate(list(values.values())))
        lines = [
            Line(name, edges, np.histogram(each, edges)[0] / len(each), _COLOURS.get(name, name), style="steps")
            for name, each in values.items()
        ]
        charts.append(
            Chart(
                key=f"pairs-{kind}", title=title, description=description, x_label=label, y_label=f"share of {what}",
                lines=lines, y_percent=True, section="comparison",
            )
        )  # fmt: skip
    return charts


def _edges(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return np.linspace(low, high, _BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])
