"""Results as tables in the terminal; ``figure`` plots them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sepo.console import print_lines, print_table

HEADS: Mapping[str, str] = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "precision": "precision",
    "recall": "recall",
    "first_error": "first error",
    "first_error_auroc": "first-error AUROC",
}
"""Headings of the measures."""

LEVELS = ("token", "span", "step")
"""Levels of units: tokens, error spans and steps."""

_FIRST_TABLE = ("auroc", "average_precision", "precision", "recall")
_LEVEL_TABLE = ("auroc", "recall", "first_error", "first_error_auroc")


def heading(measure: str, ratio: float) -> str:
    """Return the heading of a measure; precision and recall include the selection ratio."""
    return f"{HEADS[measure]} at {ratio:.0%}" if measure in ("precision", "recall") else HEADS[measure]


def interval(estimate: Mapping[str, float] | None, *, signed: bool = False) -> str:
    """Format a mean with its interval; a dash for a measure that is not defined.

    >>> interval({"mean": 0.92, "low": 0.8849, "high": 0.95})
    '0.920 [0.885, 0.950]'
    """
    if estimate is None:
        return "-"
    form = "+.3f" if signed else ".3f"
    return f"{estimate['mean']:{form}} [{estimate['low']:{form}}, {estimate['high']:{form}}]"


def at_level(result: Mapping[str, Any], level: str) -> Mapping[str, Any] | None:
    """Return the results at a level, with ``scorers`` and ``differences``; None if there are none.

    Args:
        result: a return value of ``sepo.credit.run.measure``.
        level: one of ``LEVELS``.
    """
    if level == "token":
        return result
    found: Mapping[str, Any] | None = result.get("levels", {}).get(level)
    return found


def responses_of(found: Mapping[str, Any]) -> int:
    """Return the number of responses that were measured at a level, see ``at_level``."""
    return int(found.get("data", found)["responses"])


def kinds_of(result: Mapping[str, Any], by: str) -> list[str]:
    """Return the types (``by_type``) or languages (``by_language``) of a result, most frequent first."""
    counts = result["data"].get("spans" if by == "by_type" else "languages", {})
    found = next(iter(result["scorers"].values())).get(by, {})
    return sorted(found, key=lambda kind: (-counts.get(kind, 0), kind))


def print_result(result: Mapping[str, Any]) -> None:
    """Print the results of a measurement.

    Args:
        result: the return value of ``sepo.credit.run.measure``.
    """
    ratio, scorers = result["settings"]["ratio"], result["scorers"]
    columns = ("scorer", *(heading(measure, ratio) for measure in _FIRST_TABLE))
    rows = [[name, *(interval(of[measure]) for measure in _FIRST_TABLE)] for name, of in scorers.items()]
    print_table(_title(result), columns, rows)
    print_table(
        "by token, error span and step",
        ("level", "scorer", "responses", *(heading(measure, ratio) for measure in _LEVEL_TABLE)),
        [
            [level, name, f"{responses_of(found):,}", *(interval(of.get(measure)) for measure in _LEVEL_TABLE)]
            for level in LEVELS
            if (found := at_level(result, level)) is not None
            for name, of in found["scorers"].items()
        ],
        words=2,
    )
    for by, what in (("by_type", "type of error"), ("by_language", "language")):
        kinds = kinds_of(result, by)
        if len(kinds) > 1:
            print_table(
                f"AUROC by {what}",
                (what.partition(" ")[0], "responses", *scorers),
                [
                    [
                        kind,
                        str(next(iter(scorers.values()))[by][kind]["responses"]),
                        *(interval(of[by][kind]["auroc"]) for of in scorers.values()),
                    ]
                    for kind in kinds
                ],
            )
    if result["differences"]:
        print_table(
            "differences, paired by response",
            ("", "AUROC", heading("recall", ratio), HEADS["first_error"]),
            [
                [
                    f"{entry['first']} - {entry['second']}",
                    *(interval(entry[measure], signed=True) for measure in ("auroc", "recall", "first_error")),
                ]
                for entry in result["differences"]
            ],
        )
    print_lines(notes(result))


def print_suite(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Print one table of all scorers and data sets.

    Args:
        results: the return value of ``sepo.credit.run.measure_sets``.
    """
    columns, rows = suite_table(results)
    print_table("all data sets", columns, rows, words=2)


def suite_table(results: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of a table of all scorers and data sets.

    Args:
        results: the return value of ``sepo.credit.run.measure_sets``.
    """
    ratio = next(iter(results.values()))["settings"]["ratio"]
    columns = [
        "data set",
        "scorer",
        *(f"AUROC by {level}" for level in LEVELS),
        heading("recall", ratio),
        "first error by step",
    ]
    rows = []
    for name, result in results.items():
        for scorer in result["scorers"]:
            found = {level: at_level(result, level) for level in LEVELS}
            of = {level: each["scorers"][scorer] if each else {} for level, each in found.items()}
            rows.append(
                [
                    name,
                    scorer,
                    *(interval(of[level].get("auroc")) for level in LEVELS),
                    interval(of["token"].get("recall")),
                    interval(of["step"].get("first_error")),
                ]
            )
    return columns, rows


def _title(result: Mapping[str, Any]) -> str:
    data = result["data"]
    share = data["marked_tokens"] / data["tokens"]
    size = f"{data['responses']:,} rejected responses, {data['tokens']:,} tokens"
    return f"{data['source']}: {size}, {share:.0%} of them wrong"


def notes(result: Mapping[str, Any]) -> list[str]:
    """Return notes on how to read the tables.

    Args:
        result: the return value of ``sepo.credit.run.measure``.
    """
    data, settings, best = result["data"], result["settings"], result["best_possible"]
    left = data["left_out"]
    lines = [
        f"A scorer that ranks every wrong token first has precision {best['precision']:.3f} and recall "
        f"{best['recall']:.3f} at {settings['ratio']:.0%}.",
        "Measures are computed within each response and averaged; in brackets, 95 % intervals "
        f"({settings['bootstrap']:,} bootstrap samples of the responses, seed {settings['seed']}).",
        "first error: whether the lowest-ranked unit is the first wrong one. first-error AUROC: the share of the right "
        "units before the first wrong one that rank above it.",
    ]
    if "random" in result["scorers"]:
        lines.append(f"random: the mean of {settings['random_draws']} draws for each response.")
    for name, what in (("no_token_marked", "no wrong token"), ("all_tokens_marked", "only wrong tokens")):
        if left[name]:
            lines.append(f"{left[name]:,} responses with {what} are excluded.")
    if data["spans_cut"]:
        lines.append(f"{data['spans_cut']:,} marked errors were truncated; increase --cutoff-len.")
    counted = result["reading"]["end_of_turn"] == "counted"
    lines.append(
        "The end of turn counts as right, as training may select it too (--text-tokens excludes it)."
        if counted
        else "Tokens that cover no character of the response (the end of turn) are excluded."
    )
    return lines


def short_names(models: Mapping[str, Any]) -> Sequence[str]:
    """Return the models of a result in words, without the directories of local ones.

    >>> short_names({"model": {"model": "/a/b/smol", "adapters": ["/x/oracle"]}, "oracle": None})
    ['model: smol + oracle']
    """
    return [
        f"{role}: {' + '.join(path.rstrip('/').rpartition('/')[2] for path in (of['model'], *of['adapters']))}"
        for role, of in models.items()
        if of is not None
    ]
