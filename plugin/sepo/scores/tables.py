"""Tables on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sepo.scores.summary import SHARE, StoreSummary, is_chosen
from sepo.tokens.distribution import Distribution

_WIDTH = 120


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> None:
    """Print a table, whole cells on any output.

    Args:
        title: the line above it.
        columns: the headings.
        rows: the cells.
        words: how many columns, from the left, hold words; the others are numbers, on the right of their columns.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < words else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(file=sys.stdout) if sys.stdout.isatty() else Console(file=sys.stdout, width=_WIDTH)
    console.print(table, markup=False, highlight=False)


def print_summary(summary: StoreSummary, *, title: str) -> None:
    """Print how a store's numbers are distributed, a line per side.

    Args:
        summary: of the store.
        title: the line above the table.
    """
    columns = ("side", "tokens", "mean", "std", "5 %", "50 %", "95 %", f"selected {SHARE:.0%}", "carry")
    print_table(
        f"{title}: {summary.rows:,} pairs, {summary.tokens:,} tokens",
        columns,
        [_side_row(column, side) for column, side in summary.sides.items()],
    )


def _side_row(column: str, side: Distribution) -> list[str]:
    numbers = (side.mean, side.std, side.low, side.median, side.high)
    end = "highest" if is_chosen(column) else "lowest"
    carried = "-" if side.carried is None else f"{side.carried:.0%}"
    return [
        column.partition("_")[0],
        f"{side.tokens:,}",
        *(f"{number:+.4f}" if number < 0 or number > 0 else "0" for number in numbers),
        end,
        f"{side.kept:+,.1f} of {side.total:+,.1f} ({carried})",
    ]


def size(value: int) -> str:
    """Bytes as a person reads them."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= unit:
            return f"{value / unit:.1f} {name}"
    return f"{value} B"
