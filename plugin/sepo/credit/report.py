"""Results as tables in the terminal; ``figure`` plots them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sepo.console import print_lines, print_table

_HEADS = {"auroc": "AUROC", "average_precision": "average precision", "precision": "precision", "recall": "recall"}


def heading(measure: str, ratio: float) -> str:
    """Return the heading of a measure; precision and recall include the selection ratio."""
    return f"{_HEADS[measure]} at {ratio:.0%}" if measure in ("precision", "recall") else _HEADS[measure]


def interval(estimate: Mapping[str, float], *, signed: bool = False) -> str:
    """Format a mean with its interval.

    >>> interval({"mean": 0.92, "low": 0.8849, "high": 0.95})
    '0.920 [0.885, 0.950]'
    """
    form = "+.3f" if signed else ".3f"
    return f"{estimate['mean']:{form}} [{estimate['low']:{form}}, {estimate['high']:{form}}]"


def print_result(result: Mapping[str, Any]) -> None:
    """Print the results of a measurement.

    Args:
        result: the return value of ``sepo.credit.run.measure``.
    """
    ratio, scorers, data = result["settings"]["ratio"], result["scorers"], result["data"]
    columns = ("scorer", *(heading(measure, ratio) for measure in _HEADS))
    rows = [[name, *(interval(of[measure]) for measure in _HEADS)] for name, of in scorers.items()]
    print_table(_title(result), columns, rows)
    kinds = sorted(next(iter(scorers.values()))["by_type"], key=lambda kind: (-data["spans"].get(kind, 0), kind))
    if len(kinds) > 1:
        print_table(
            "AUROC by type of error",
            ("type", "responses", *scorers),
            [
                [
                    kind,
                    str(next(iter(scorers.values()))["by_type"][kind]["responses"]),
                    *(interval(of["by_type"][kind]["auroc"]) for of in scorers.values()),
                ]
                for kind in kinds
            ],
        )
    if result["differences"]:
        print_table(
            "differences, paired by response",
            ("", "AUROC", heading("recall", ratio)),
            [
                [
                    f"{entry['first']} - {entry['second']}",
                    *(interval(entry[measure], signed=True) for measure in ("auroc", "recall")),
                ]
                for entry in result["differences"]
            ],
        )
    print_lines(notes(result))


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
