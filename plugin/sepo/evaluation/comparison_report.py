"""A comparison as tables in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sepo.console import print_lines, print_table
from sepo.evaluation.report import length_text, percent_text, plain_text, points_text, signed_text

_FIRST = (("accuracy", "accuracy"), ("accuracy_length_normalized", "accuracy per token"), ("right", "right"))
_SECOND: Sequence[tuple[str, str, Callable[[Mapping[str, Any]], str]]] = (
    ("margin", "margin (nats)", signed_text),
    ("kl_chosen", "KL, chosen (nats)", plain_text),
    ("kl_answers", "KL, answers (nats)", plain_text),
    ("tokens", "tokens per answer", length_text),
    ("finished", "finished", percent_text),
    ("repeated_3", "repeated 3-grams", percent_text),
)


def print_comparison(values: Mapping[str, Any]) -> None:
    """Print the contents of ``compare.json``.

    Args:
        values: the contents of ``compare.json``.
    """
    variants, settings, data = values["variants"], values["settings"], values["data"]
    evaluated = {name: each for name, each in variants.items() if each["mean"]}
    if evaluated:
        baseline = settings["baseline"]
        pairs = f"{data['pairs']:,} pairs of {data['dataset']}"
        intervals = f"{settings['confidence']:.0%} intervals over rows in brackets"
        print_table(f"{pairs}; differences to {baseline}, paired by row; {intervals}", *preference_rows(values))
        columns, rows = measure_rows(evaluated)
        if len(columns) > 1:
            print_table("margins, KL and answers", columns, rows)
    lines = []
    for name, each in variants.items():
        if each["validation"] and each["run"] is not None:
            lines.append(f"{name}: {each['run']} was chosen by {settings['choose_by']} on validation rows")
        if each["mean"] and each["difference"] is None and name != settings["baseline"]:
            lines.append(f"{name}: no difference to {settings['baseline']}, which has other rows or no result")
        lines += [f"failed: {run}: {error}" for run, error in each["failed"].items()]
    print_lines(lines)


def preference_rows(values: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of accuracies and right answers, each with its difference to the baseline.

    Args:
        values: the contents of ``compare.json``.
    """
    evaluated = {name: each for name, each in values["variants"].items() if each["mean"]}
    shown = [(name, label) for name, label in _FIRST if any(each["mean"].get(name) for each in evaluated.values())]
    if any(name == "accuracy" for name, _ in shown):
        shown = [each for each in shown if each[0] != "accuracy_length_normalized"]
    rows = []
    for name, each in evaluated.items():
        row = [name, f"{len(each['seeds'])} of {len(values['settings']['seeds'])}"]
        for measure, _ in shown:
            found, change = each["mean"].get(measure), (each["difference"] or {}).get(measure)
            row += ["-" if found is None else percent_text(found), "" if change is None else points_text(change)]
        rows.append(row)
    return ["variant", "seeds", *(title for _, label in shown for title in (label, "difference"))], rows


def measure_rows(evaluated: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of the other measures that a variant has.

    Args:
        evaluated: ``variants`` of ``compare.json`` with results.
    """
    shown = [row for row in _SECOND if any(each["mean"].get(row[0]) for each in evaluated.values())]
    rows = [
        [name, *("-" if (found := each["mean"].get(measure)) is None else show(found) for measure, _, show in shown)]
        for name, each in evaluated.items()
    ]
    return ["variant", *(label for _, label, _ in shown)], rows
