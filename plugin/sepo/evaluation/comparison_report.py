"""A comparison as tables in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sepo.console import print_lines, print_table
from sepo.evaluation.degeneration import REPEATED
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

_SIGNED, _SHARES = ("margin",), ("accuracy", "finished", "repeated", "right")
"""Beginnings of the names of measures that have a sign, and that are shares."""
_LABELS = (
    dict(_FIRST)
    | {name: label for name, label, _ in _SECOND}
    | {
        "accuracy_summed": "accuracy, summed",
        "margin_summed": "margin, summed (nats)",
        "margin_length_normalized": "margin per token (nats)",
        "kl_rejected": "KL, rejected (nats)",
        **{f"repeated_{n}": f"repeated {n}-grams" for n in REPEATED},
        "right_and_finished": "right and finished",
    }
)


@dataclass(frozen=True)
class MeasuredVariant:
    """One measure of one variant, formatted.

    Args:
        variant: name of the variant.
        measure: name of the measure in ``compare.json``.
        mean: its mean over seeds and rows, with the interval; the empty string if no row has a value.
        difference: its difference to the baseline, with the interval; the empty string without one.
        differs: whether the interval of the difference excludes 0.
        seeds: its mean by seed; the empty string for a seed without a result.
    """

    variant: str
    measure: str
    mean: str
    difference: str
    differs: bool
    seeds: Sequence[str]


def measure_label(measure: str) -> str:
    """Return the name of a measure in words.

    >>> measure_label("kl_chosen"), measure_label("accuracy_summed")
    ('KL, chosen (nats)', 'accuracy, summed')
    """
    return _LABELS.get(measure, measure)


def measured_variants(values: Mapping[str, Any]) -> list[MeasuredVariant]:
    """Return every measure that a variant has, by measure and then by variant.

    Args:
        values: the contents of ``compare.json``.
    """
    variants = {name: each for name, each in values["variants"].items() if each["mean"]}
    seeds = [str(seed) for seed in values["settings"]["seeds"]]
    found = []
    for measure in values["measures"]:
        show, show_difference = _formats(measure)
        if not any(each["mean"].get(measure) for each in variants.values()):
            continue
        for name, each in variants.items():
            mean, change = each["mean"].get(measure), (each["difference"] or {}).get(measure)
            single = [each["seeds"].get(seed, {}).get(measure) for seed in seeds]
            found.append(
                MeasuredVariant(
                    variant=name,
                    measure=measure,
                    mean="" if mean is None else show(mean),
                    difference="" if change is None else show_difference(change),
                    differs=change is not None and excludes_zero(change),
                    seeds=["" if value is None else show({"value": value, "low": None}) for value in single],
                )
            )
    return found


def excludes_zero(change: Mapping[str, Any]) -> bool:
    """Return whether the interval of a difference excludes 0; False without an interval.

    >>> excludes_zero({"value": 0.2, "low": 0.1, "high": 0.3}), excludes_zero({"value": 0.2, "low": None, "high": None})
    (True, False)
    """
    return change["low"] is not None and (change["low"] > 0 or change["high"] < 0)


def _formats(measure: str) -> tuple[Callable[[Mapping[str, Any]], str], Callable[[Mapping[str, Any]], str]]:
    """Return the formats of a measure and of its difference."""
    if measure.startswith(_SHARES):
        return percent_text, points_text
    if measure.startswith(_SIGNED):
        return signed_text, signed_text
    return length_text if measure == "tokens" else plain_text, signed_text


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
    shown = first_measures(values)
    rows = []
    for name, each in evaluated.items():
        row = [name, f"{len(each['seeds'])} of {len(values['settings']['seeds'])}"]
        for measure in shown:
            found, change = each["mean"].get(measure), (each["difference"] or {}).get(measure)
            row += ["-" if found is None else percent_text(found), "" if change is None else points_text(change)]
        rows.append(row)
    return ["variant", "seeds", *(title for measure in shown for title in (measure_label(measure), "difference"))], rows


def first_measures(values: Mapping[str, Any]) -> list[str]:
    """Return the measures that a comparison is decided by: accuracy, or else accuracy per token, and right answers.

    Args:
        values: the contents of ``compare.json``.
    """
    evaluated = [each for each in values["variants"].values() if each["mean"]]
    shown = [name for name, _ in _FIRST if any(each["mean"].get(name) for each in evaluated)]
    return [name for name in shown if name != "accuracy_length_normalized" or "accuracy" not in shown]


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
