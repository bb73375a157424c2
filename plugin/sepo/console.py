"""What commands print: tables, lines and sizes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH = 120
_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def terminal() -> Console:
    """Standard output; whole lines of 120 characters where it is no terminal."""
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
    """Print a table, whole cells on any output.

    Args:
        title: the line above it, or None.
        columns: the headings.
        rows: the cells; what looks like rich's markup is printed as it is.
        words: how many columns, from the left, hold words; the others are numbers, on the right of their columns.
        footer: cells of a last row under a line, or None.
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
    """Print lines as they are, each whole."""
    console = terminal()
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def size(value: float | None) -> str:
    """Bytes as a person reads them; ``-`` where nothing was measured.

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
