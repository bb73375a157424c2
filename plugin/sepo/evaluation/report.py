"""Evaluation results as tables in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sepo.console import print_lines, print_table
from sepo.evaluation.result import MEASURES, ROLES
from sepo.evaluation.sample_summary import SampleSummary
from sepo.intervals import CONFIDENCE

_MEASURES = {"summed": "summed", "length_normalized": "per token", "reward": "log-ratio"}

Values = Mapping[str, Any]
Row = list[str]


def print_result(values: Values) -> None:
    """Print the contents of ``eval.json``.

    Args:
        values: the contents of ``eval.json``.
    """
    roles = [role for role in ROLES if values["policies"][role] is not None]
    policies = [values["policies"][role] for role in roles]
    data, settings, change = values["data"], values["settings"], values["change"]
    title = f"{data['pairs']:,} pairs of {data['dataset']}; {settings['confidence']:.0%} intervals in brackets"
    print_table(title, ["", *roles, *(["change"] if change else [])], pair_rows(policies, change))
    for name, prompts in values["prompts"].items():
        title = f"answers to {name} ({prompts['dataset']}), {settings['decoding']}: {prompts['answers']:,}"
        found = [policy["generations"][name] for policy in policies]
        correct = change.get("correct") if change and found[-1].get("correct") else None
        print_table(title, ["", *roles, *(["change"] if correct else [])], answer_rows(found, correct))
    lines = [f"{role}: {_model(policy['model'])}" for role, policy in zip(roles, policies, strict=True)]
    reference = values["reference"]
    lines.append(
        "no reference is set, so there is neither KL nor log-ratio (set a ref_model, or an adapter)"
        if reference is None
        else f"reference: {_model(reference)}; KL(policy || reference) over the full vocabulary, mean over positions"
    )
    print_lines(lines)


def print_summary(summary: SampleSummary, *, dataset: str) -> None:
    """Print a summary of sampled responses.

    Args:
        summary: the summary.
        dataset: name of the data set of the prompts.
    """
    rows = [
        ["tokens per response", length_text(asdict(summary.tokens))],
        ["finished", percent_text(asdict(summary.finished))],
    ]
    shares = {
        "right": summary.right,
        "right and finished": summary.right_and_finished,
        "at least one right": summary.any_right,
    }
    if summary.judged:
        rows += [[f"{name}, of {summary.judged:,} judged prompts", percent_text(asdict(value))]
                 for name, value in shares.items() if value is not None]  # fmt: skip
        rows.append(["prompts without expected answer", f"{summary.prompts - summary.judged:,}"])
    count = f"{summary.responses:,} responses to {summary.prompts:,} prompts of {dataset}"
    print_table(f"{count}; {CONFIDENCE:.0%} intervals in brackets", ["", ""], rows)


def pair_rows(policies: Sequence[Values], change: Values | None) -> list[Row]:
    """Return the cells for held-out pairs, one row per measure.

    Args:
        policies: ``policies`` of ``eval.json``, in the order of the columns.
        change: ``change`` of ``eval.json``.
    """
    rows = []
    for name in MEASURES:
        found = [policy["preference"][name] for policy in policies]
        if found[-1] is None:
            continue
        label = _MEASURES[name]
        # A policy that is its own reference has a log-ratio of 0, so its accuracy and margin are not shown.
        cells = [None if each["ties"] and not each["margin"]["value"] else each for each in found]
        for field, title, show, show_change in (
            ("accuracy", f"accuracy, {label}", percent_text, points_text),
            ("margin", f"margin, {label} (nats)", signed_text, signed_text),
        ):
            row = [title, *("-" if each is None else show(each[field]) for each in cells)]
            if change is not None:
                row.append(show_change(change[name][field]) if name in change else "")
            rows.append(row)
    for side in ("chosen", "rejected"):
        if policies[-1]["kl"] is not None:
            row = [f"KL, {side} (nats per token)"]
            row += [plain_text(policy["kl"][side]["per_token"]) for policy in policies]
            rows.append([*row, ""] if change is not None else row)
    return rows


def answer_rows(found: Sequence[Values], change: Values | None = None) -> list[Row]:
    """Return the cells for the answers to one set of prompts, one row per measure.

    Args:
        found: statistics of each policy, in the order of the columns.
        change: ``change.correct`` of ``eval.json``; None without two policies and a judge.
    """
    shown: list[tuple[str, Callable[[Values], str]]] = [
        ("tokens per answer", lambda each: length_text(each["tokens"])),
        ("truncated", lambda each: percent_text(each["truncated"])),
        ("distinct-1, -2, -3", lambda each: _shares(each["distinct"].values())),
        ("repeated 2-, 3-, 4-grams", lambda each: _shares(r and r["value"] for r in each["repeated"].values())),
    ]
    if found[-1]["kl"] is not None:
        shown.append(("KL (nats per token)", lambda each: plain_text(each["kl"]["per_token"])))
    rows = [[label, *map(show, found), *([""] if change else [])] for label, show in shown]
    return [*rows, *_correct_rows([each["correct"] for each in found], change)] if found[-1].get("correct") else rows


_CORRECT = {"right": "right", "finished": "finished", "right_and_finished": "right and finished"}


def _correct_rows(found: Sequence[Values], change: Values | None) -> list[Row]:
    judged, others = found[-1]["judged"], found[-1]["without_expected"]
    rows = []
    for name, label in _CORRECT.items():
        row = [
            f"{label}, of {judged:,} judged",
            *("-" if each[name] is None else percent_text(each[name]) for each in found),
        ]
        rows.append([*row, points_text(change[name]) if change[name] else "-"] if change else row)
    return [*rows, ["without expected answer", *[f"{others:,}"] * len(found), *([""] if change else [])]]


def _model(spec: Values) -> str:
    adapters = f" with {', '.join(spec['adapters'])}" if spec["adapters"] else ""
    bits = f" in {spec['quantization_bit']} bits" if spec["quantization_bit"] else ""
    return f"{spec['model']}{adapters}{bits}"


def _interval(value: Values, form: str, scale: float = 1.0) -> str:
    if value["low"] is None:
        return ""
    return f" [{format(scale * value['low'], form)}, {format(scale * value['high'], form)}]"


def percent_text(value: Values) -> str:
    """Format an estimate of a share in percent, with its interval."""
    return f"{value['value']:.1%}{_interval(value, '.1f', 100.0)}"


def points_text(value: Values) -> str:
    """Format the difference of two shares in percentage points, with its interval."""
    return f"{100 * value['value']:+.1f} points{_interval(value, '+.1f', 100.0)}"


def signed_text(value: Values) -> str:
    """Format an estimate with its sign and interval."""
    return f"{value['value']:+.3f}{_interval(value, '+.3f')}"


def plain_text(value: Values) -> str:
    """Format an estimate with four digits and its interval."""
    return f"{value['value']:.4f}{_interval(value, '.4f')}"


def length_text(value: Values) -> str:
    """Format an estimate of a length with its interval."""
    return f"{value['value']:.1f}{_interval(value, '.1f')}"


def _shares(values: Any) -> str:
    return ", ".join("-" if value is None else f"{value:.3f}" for value in values)
