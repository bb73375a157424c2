"""Table and notes of a measurement."""

from __future__ import annotations

from typing import Any

from sepo.console import print_lines, print_table, size
from sepo.hosts.llamafactory.bench.contenders import HOST_DPO, HOST_SIMPO

_COLUMNS = ("stage", "pairs/s", "tokens/s", "x host dpo", "x host simpo", "peak memory", "loss")
_TOLERANCE = 0.03  # in bfloat16 the same loss over hundreds of tokens differs by a hundredth


def table_rows(result: dict[str, Any]) -> list[list[str]]:
    """Return the cells of the table, one row per contender.

    Args:
        result: from ``measure``.
    """
    return [
        [
            entry["label"],
            _rate(entry["pairs_per_second"]),
            f"{entry['tokens_per_second']:,.0f}",
            _ratio(entry["ratio_to_host_dpo"]),
            _ratio(entry["ratio_to_host_simpo"]),
            size(entry["peak_memory_bytes"]),
            "-" if entry["first_batch_loss"] is None else f"{entry['first_batch_loss']:.5f}",
        ]
        for entry in result["contenders"]
    ]


def print_result(result: dict[str, Any]) -> None:
    """Print the table and its notes.

    Args:
        result: from ``measure``.
    """
    machine = result["machine"]
    where = machine["gpu"]["name"] if machine["gpu"] else f"{machine['processor']}, {machine['threads']} threads"
    setting = result["setting"]
    title = f"{setting['rounds']} rounds of {setting['pairs_per_step']} pairs on {where}"
    print_table(title, _COLUMNS, table_rows(result))
    print_lines(f"- {note}" for note in result["notes"])


def loss_notes(losses: dict[str, float]) -> list[str]:
    """Return warnings for losses whose values in the host and in sepo differ by more than the tolerance.

    Args:
        losses: loss of the first batch by contender.
    """
    notes = []
    for host, own in ((HOST_DPO, "dpo"), (HOST_SIMPO, "simpo")):
        if host in losses and own in losses:
            apart = abs(losses[host] - losses[own])
            if not apart <= _TOLERANCE * max(1e-3, abs(losses[host])):
                notes.append(
                    f"CHECK: on the same batch, the loss of {own} is {losses[own]:.5f} in sepo and {losses[host]:.5f} "
                    "in LLaMA-Factory."
                )
    return notes


def _rate(value: float) -> str:
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1}f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
