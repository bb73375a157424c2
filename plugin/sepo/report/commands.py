"""`sepo show`: the tokens of a run or a store in the terminal."""

from __future__ import annotations

import argparse
from pathlib import Path

from sepo.errors import SepoError

_ROWS = 3


def add_show(show: argparse.ArgumentParser) -> None:
    """Add the options of `sepo show` to its parser."""
    show.description = (
        "Print pairs with their tokens coloured by score, the selected ones marked. STORE_OR_RUN is the output_dir of "
        "a run, the folder of a store of token scores, or the beginning of its key as `sepo scores ls` shows it."
    )
    show.add_argument("place", metavar="STORE_OR_RUN")
    which = show.add_mutually_exclusive_group()
    which.add_argument("--row", type=int, metavar="N", help="this row of the data set, counted from 0")
    which.add_argument(
        "--rows", type=int, metavar="K", default=_ROWS, help=f"so many rows, spread over the data set ({_ROWS})"
    )
    show.add_argument("--side", choices=("both", "chosen", "rejected"), default="both", help="which answers")
    show.add_argument("--scores", action="store_true", help="also every token's score, in a table")


def run_show(options: argparse.Namespace) -> int:
    """Print what was asked for.

    Returns:
        The exit status: 1 where there is nothing to show.

    Raises:
        SepoError: there is no such run, store or row.
    """
    from sepo.report.reading import read_subject
    from sepo.report.show import show

    if options.rows < 1:
        raise SepoError(f"--rows is {options.rows}, expected at least 1.")
    rows = None if options.row is None else [options.row]
    subject = read_subject(Path(options.place), pairs=options.rows, rows=rows, spread=False)
    if rows and not subject.pairs and subject.rows is not None and not 0 <= options.row < subject.rows:
        raise SepoError(f"--row is {options.row}, expected one from 0 to {subject.rows - 1} of {options.place}.")
    show(subject, sides=("chosen", "rejected") if options.side == "both" else (options.side,), scores=options.scores)
    return 0 if subject.pairs else 1
