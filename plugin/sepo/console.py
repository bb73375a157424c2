"""Printing of tables, lines and sizes for commands."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH = 120
_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def terminal() -> Console:
    """Return a console on standard output; if that is not a terminal, lines are 120 characters wide."""
    from rich.console import Console

    return Console(file=sys.stdout) if sys.stdout.isatty() else Console(file=sys.stdout, width=_WIDTH)


def print_table(
    title: str | None,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    words: int = 1,
    footer: Sequence[str] | None = None,
) -> None:
    """Print a table, without truncating cells on any output.

    Args:
        title: the line above the table, or None.
        columns: the headings.
        rows: the cells; rich markup in them is printed verbatim.
        words: number of leading columns with text, aligned left; the others hold numbers, aligned right.
        footer: cells of a last row below a rule, or None.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=None if title is None else Text(title), title_justify="left", box=SIMPLE_HEAD, show_footer=bool(footer)
    )
    for index, column in enumerate(columns):
        table.add_column(
            Text(column),
            footer=Text(footer[index]) if footer else "",
            justify="left" if index < words else "right",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    terminal().print(table)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines verbatim, without wrapping."""
    console = terminal()
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def size(value: float | None) -> str:
    """Format bytes for reading; ``-`` if nothing was measured.

    >>> size(5 * 2**29)
    '2.50 GiB'
    """
    if value is None:
        return "-"
    for unit, name in _UNITS:
        if value >= unit:
            amount = value / unit
            digits = 2 if name == "GiB" else 1 if amount < 10 else 0
            return f"{amount:,.{digits}f} {name}"
    return f"{value:.0f} B"
