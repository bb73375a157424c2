"""What the registered data sets are, and what was read from their files, as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sepo.console import print_lines, print_table
from sepo.credit.sets.registry import BUILT_IN, SETS, ReadSet

_MOST_TYPES = 12


def print_sets() -> None:
    """Print the public data sets, with licence and what to download from where, and the built-in ones."""
    for name, each in SETS.items():
        print_lines(
            [
                f"{name}: {each.content}",
                f"  licence   {each.licence}",
                f"  source    {each.source}",
                f"  download  {each.files}",
                f"  use       sepo credit {name}=PATH ...",
                "",
            ]
        )
    print_lines([f"built in, held-out generated pairs: {', '.join(BUILT_IN)}"])


def print_read(sets: Sequence[ReadSet]) -> None:
    """Print what was read: rows, pairs, spans, types, languages, and what was left out for which reason.

    Args:
        sets: the sets.
    """
    print_table(
        "read",
        ("data set", "rows", "pairs", "rejected only", "spans", "types", "languages"),
        [
            [
                each.name,
                f"{each.rows:,}",
                f"{len(each.pairs) - each.unpaired:,}",
                f"{each.unpaired:,}",
                f"{sum(each.types.values()):,}",
                str(len(each.types)),
                _counted(each.languages) or "unknown",
            ]
            for each in sets
        ],
    )
    lines = []
    for each in sets:
        lines.append(f"{each.name}: {each.source}" + (f" ({each.data_set.licence})" if each.data_set else ""))
        lines.append(f"  types: {_counted(each.types)}")
        lines += [f"  left out: {reason}: {of.count:,} (first: {of.first})" for reason, of in each.left_out.items()]
    print_lines(lines)


def _counted(counts: Mapping[str, int]) -> str:
    shown = [f"{name} {count:,}" for name, count in list(counts.items())[:_MOST_TYPES]]
    more = len(counts) - len(shown)
    return ", ".join([*shown, *([f"{more} more"] if more > 0 else [])])


def read_as_dict(read: ReadSet) -> dict[str, Any]:
    """Return what was read as plain JSON values, see ``sepo.credit.run``."""
    return {
        "path": read.source,
        "rows": read.rows,
        "pairs": len(read.pairs),
        "unpaired": read.unpaired,
        "left_out": {reason: of.count for reason, of in read.left_out.items()},
        "licence": None if read.data_set is None else read.data_set.licence,
        "url": None if read.data_set is None else read.data_set.source,
    }
