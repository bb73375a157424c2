"""The measurement as a table and as plain JSON values."""

from __future__ import annotations

import sys
from typing import Any

from sepo.hosts.llamafactory.bench.contenders import HOST_DPO, HOST_SIMPO

_COLUMNS = ("stage", "pairs/s", "tokens/s", "x host dpo", "x host simpo", "peak memory", "loss")
_WIDTH = 110
_TOLERANCE = 0.03  # in bfloat16 the same loss over hundreds of tokens differs by a hundredth


def table_rows(result: dict[str, Any]) -> list[list[str]]:
    """The table's cells, a row per contender.

    Args:
        result: as ``measure`` gives it.
    """
    return [
        [
            entry["label"],
            _rate(entry["pairs_per_second"]),
            f"{entry['tokens_per_second']:,.0f}",
            _ratio(entry["ratio_to_host_dpo"]),
            _ratio(entry["ratio_to_host_simpo"]),
            size(entry["peak_memory_bytes"]),
            f"{entry['first_batch_loss']:.5f}",
        ]
        for entry in result["contenders"]
    ]


def print_table(result: dict[str, Any]) -> None:
    """Print the table and what it means.

    Args:
        result: as ``measure`` gives it.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    machine = result["machine"]
    where = machine["gpu"]["name"] if machine["gpu"] else f"{machine['processor']}, {machine['threads']} threads"
    setting = result["setting"]
    table = Table(
        title=f"{setting['rounds']} rounds of {setting['pairs_per_step']} pairs on {where}",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == "stage" else "right", no_wrap=True)
    for row in table_rows(result):
        table.add_row(*row)
    console = Console(file=sys.stdout) if sys.stdout.isatty() else Console(file=sys.stdout, width=_WIDTH)
    console.print(table)
    for note in result["notes"]:
        console.print(f"- {note}", markup=False, highlight=False)


def loss_notes(losses: dict[str, float]) -> list[str]:
    """Warnings where the same loss came out differently in the host and here.

    Args:
        losses: by contender, of the first batch.
    """
    notes = []
    for host, ours in ((HOST_DPO, "dpo"), (HOST_SIMPO, "simpo")):
        if host in losses and ours in losses:
            apart = abs(losses[host] - losses[ours])
            if not apart <= _TOLERANCE * max(1e-3, abs(losses[host])):
                notes.append(
                    f"CHECK: the loss of {ours} is {losses[ours]:.5f} here and {losses[host]:.5f} in LLaMA-Factory, on "
                    "the same batch."
                )
    return notes


def size(value: int | None) -> str:
    """Bytes as a person reads them; ``-`` where nothing was measured."""
    if value is None:
        return "-"
    if value >= 2**30:
        return f"{value / 2**30:.2f} GiB"
    return f"{value / 2**20:.{0 if value >= 10 * 2**20 else 1}f} MiB"


def _rate(value: float) -> str:
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1}f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
