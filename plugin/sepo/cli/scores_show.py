"""`sepo scores show`: print a store's manifest, the distribution of its scores and a few rows."""

from __future__ import annotations

import json

import torch

from sepo.console import print_table, size
from sepo.score_store import ScoreStore, disk_size, read_names
from sepo.score_store.distribution import kept_in_rows
from sepo.score_store.summary import SHARE, is_chosen, pieces, summarize
from sepo.score_store.tables import print_summary
from sepo.scoring.chance import ADVICE, store_chance
from sepo.text.template_tokens import TEMPLATE_TOKENS


def show(store: ScoreStore, *, rows: int) -> None:
    """Print a summary of a store.

    Args:
        store: the store.
        rows: number of its first rows that are printed.

    Raises:
        SepoError: a shard is damaged.
    """
    manifest, path = store.manifest, store.path
    names = read_names(path.parent, path.name)
    print(f"store     {path}")
    names.pop(TEMPLATE_TOKENS, None)  # for `sepo show`
    for name, value in names.items():
        print(f"{name:<9} {value}  (as named by the last run)" if value else f"{name:<9} -")
    done = store.rows_written
    print(f"rows      {done:,} of {manifest.rows:,} pairs, {manifest.shard_rows} to a shard, {size(disk_size(path))}")
    print(f"columns   {', '.join(manifest.columns)}")
    print(f"texts     {_texts(store)}")
    print("depends on (by content; digests are SHA-256)")
    for part, content in sorted(manifest.identity.items()):
        print(f"  {part:<16} {content if isinstance(content, str) else json.dumps(content)}")
    if missing := store.missing():
        print(f"unfinished: {len(missing)} of {len(store.shards)} shards are missing; the next run resumes from here.")
        return
    print()
    print_summary(summarize(store), title="distribution")
    if (chance := store_chance(store)) is not None:
        print(f"against noise: {chance.text()}.")
        if chance.is_noise:
            print(f"these scores cannot be told from noise: {ADVICE}.")
        print()
    _print_rows(store, rows)


def _texts(store: ScoreStore) -> str:
    if not store.texts.present:
        return "none; `sepo score` with the recipe that scored it adds them, for `sepo show`"
    problem = store.texts.problem()
    return "prompts and tokens of every row, for `sepo show`" if problem is None else problem


def _print_rows(store: ScoreStore, rows: int) -> None:
    cells = []
    table = store.table().slice(0, rows)
    for column in store.manifest.columns:
        first = 0
        for flat, lengths in pieces(table, column):
            kept = kept_in_rows(flat, lengths, ratio=SHARE, largest=is_chosen(column))
            for index, (scores, chosen) in enumerate(
                zip(flat.split(lengths.tolist()), kept.split(lengths.tolist()), strict=True)
            ):
                cells.append((first + index, column, scores, chosen))
            first += len(lengths)
    lines = [
        [
            str(row),
            column.partition("_")[0],
            str(len(scores)),
            f"{int(chosen.sum())} ({float(chosen.float().mean()):.0%})" if len(scores) else "0",
            f"{float(scores.sum()):+.3f}",
            f"{float(scores[chosen].sum()):+.3f}",
            _range(scores),
        ]
        for row, column, scores, chosen in sorted(cells, key=lambda cell: (cell[0], cell[1]))
    ]
    columns = ("row", "side", "tokens", f"selected {SHARE:.0%}", "sum", "sum of selected", "lowest to highest")
    print_table("first rows", columns, lines, words=2)


def _range(scores: torch.Tensor) -> str:
    return f"{float(scores.min()):+.3f} to {float(scores.max()):+.3f}" if len(scores) else "-"
