"""Terminal tables of score stores."""

from __future__ import annotations

from sepo.console import print_table
from sepo.score_store.distribution import Distribution
from sepo.score_store.summary import SHARE, StoreSummary, is_chosen


def print_summary(summary: StoreSummary, *, title: str) -> None:
    """Print the distribution of a store's scores, one line per side.

    Args:
        summary: summary of the store.
        title: line above the table.
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
