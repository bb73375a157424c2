"""`sepo scores ls | show | verify | export | rm`: manage stores of token scores."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from sepo.errors import SepoError

_SHOWN_ROWS = 5
_SHORT = 12


def add_scores(scores: argparse.ArgumentParser) -> None:
    """Add the subcommands and their options to the parser of `sepo scores`."""
    scores.description = (
        "Manage stores of token scores. STORE is the directory of a store, or a prefix of its key as `sepo scores ls` "
        "prints it."
    )
    tasks = scores.add_subparsers(dest="subcommand", required=True, metavar="task")

    def task(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = tasks.add_parser(name, help=text, description=text)
        added.set_defaults(task=run)
        added.add_argument(
            "--dir",
            metavar="DIR",
            help="directory of the stores (token_scores_dir of a recipe; default: the default of a run)",
        )
        return added

    task("ls", _ls, "List all stores: key, scorer, models, data, rows, size.")
    show = task("show", _show, "Print what a store depends on, the distribution of its scores, and a few rows.")
    show.add_argument("store", metavar="STORE")
    verify = task("verify", _verify, "Read every file and compare checksums; exit status 1 if any is damaged.")
    verify.add_argument("store", metavar="STORE", nargs="?", help="default: all stores")
    export = task("export", _export, "Write text, tokens, scores and character offsets as a plain data set.")
    export.description = (
        "Write the rows of a recipe with their scores as a data set that `token_scorer: file` reads: conversation, "
        "both responses, and for each of their tokens its text, id, score and character offsets. Texts and tokens need "
        "the recipe that scored the rows; from a STORE, only the scores are written (`sepo show` prints its texts)."
    )
    export.add_argument("store", metavar="RECIPE.yaml | STORE")
    export.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the recipe")
    export.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="a file that ends in .jsonl, .json or .parquet"
    )
    export.add_argument("--part", help="which rows of a recipe: train (default), eval, or 'eval NAME'")
    remove = task("rm", _rm, "Remove a store, after confirmation.")
    remove.add_argument("store", metavar="STORE")
    remove.add_argument("--yes", action="store_true", help="remove without confirmation")


def run_scores(options: argparse.Namespace) -> int:
    """Run the chosen subcommand.

    Returns:
        The exit status.

    Raises:
        SepoError: the store does not exist or cannot be used.
    """
    task: Callable[[argparse.Namespace], int] = options.task
    return task(options)


def _root(options: argparse.Namespace) -> Path:
    from sepo.score_store import default_store_root

    if options.dir is None:
        return default_store_root()
    root = Path(options.dir).expanduser()
    if not root.is_dir():
        raise SepoError(f"--dir {options.dir}: the directory does not exist (from {Path.cwd()}).")
    return root.absolute()


def _ls(options: argparse.Namespace) -> int:
    from sepo.console import print_table, size
    from sepo.score_store import ScoreStore, disk_size, read_names, stored

    root = _root(options)
    rows, total = [], 0
    for path in stored(root):
        bytes_here = disk_size(path)
        total += bytes_here
        names = read_names(root, path.name)
        what = [names.get("scorer", ""), names.get("models", ""), _data(names)]
        try:
            store = ScoreStore.at(path)
        except SepoError:
            rows.append([path.name[:_SHORT], *what, "?", size(bytes_here), "damaged"])
            continue
        what[0] = what[0] or str(store.manifest.identity.get("scorer", "?"))
        done = f"{store.rows_written:,} of {store.manifest.rows:,}"
        rows.append([path.name[:_SHORT], *what, done, size(bytes_here), "yes" if store.finished else "no"])
    if not rows:
        print(f"no score stores in {root}")
        return 0
    columns = ("key", "scorer", "models", "data", "rows", "size", "complete")
    print_table(f"{root}: {len(rows)} stores, {size(total)}", columns, rows, words=4)
    return 0


def _data(names: dict[str, str]) -> str:
    return f"{names['dataset']} ({names.get('part', '?')})" if names.get("dataset") else ""


def _show(options: argparse.Namespace) -> int:
    from sepo.cli.scores_show import show
    from sepo.score_store import ScoreStore, find_store

    show(ScoreStore.at(find_store(options.store, root=_root(options))), rows=_SHOWN_ROWS)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from sepo.score_store import ScoreStore, find_store, stored

    root = _root(options)
    paths = stored(root) if options.store is None else [find_store(options.store, root=root)]
    damaged = unfinished = 0
    for path in paths:
        try:
            store = ScoreStore.at(path)
            problems = store.verify()
        except SepoError as error:
            problems, absent = [str(error)], False
        else:
            absent = bool(problems) and all("not written yet" in problem for problem in problems)
        if absent:
            unfinished += 1
            print(f"unfinished {path}: {store.rows_written:,} of {store.manifest.rows:,} rows, sound so far")
            continue
        damaged += bool(problems)
        print(f"{'DAMAGED   ' if problems else 'ok        '} {path}")
        for problem in problems:
            print(f"  {problem}")
    print(f"{len(paths)} stores: {damaged} damaged, {unfinished} unfinished" if paths else f"no score stores in {root}")
    if damaged:
        print("the next run that uses a damaged store recomputes its damaged shards; or remove it: sepo scores rm")
    return 1 if damaged else 0


def _export(options: argparse.Namespace) -> int:
    from sepo.score_store.export import checked_output, export_scores

    output = checked_output(Path(options.output))
    if options.store.endswith((".yaml", ".yml", ".json")):
        from sepo.hosts.llamafactory.recipe import load_host, quiet_on_one_device

        quiet_on_one_device()
        load_host("scores export RECIPE")
        from sepo.hosts.llamafactory.export import export_recipe

        if options.dir is not None:
            options.overrides = [*options.overrides, f"token_scores_dir={_root(options)}"]
        rows = export_recipe(Path(options.store), options.overrides, output=output, part=options.part or "train")
        print(f"written: {output}, {rows:,} rows; token_scorer: file reads it as a data set (docs/scores.md)")
        return 0
    if options.overrides or options.part:
        raise SepoError("overrides and --part need a recipe, and a store is given; remove them, or name the recipe.")
    from sepo.score_store import ScoreStore, find_store

    rows = export_scores(ScoreStore.at(find_store(options.store, root=_root(options))), output)
    print(f"written: {output}, {rows:,} rows of scores; for text and tokens, name the recipe instead of the store")
    return 0


def _rm(options: argparse.Namespace) -> int:
    from sepo.score_store import disk_size, find_store, read_names, remove_store

    path = find_store(options.store, root=_root(options))
    if not options.yes:
        names = read_names(path.parent, path.name)
        what = ", ".join(filter(None, (names.get("scorer"), names.get("models"), _data(names))))
        question = f"remove {path} ({what or 'unnamed'}, {disk_size(path):,} bytes)? [y/N] "
        if not sys.stdin.isatty():
            raise SepoError(f"stdin is not a terminal, so removing {path} cannot be confirmed; pass --yes.")
        if input(question).strip().lower() not in ("y", "yes"):
            print("kept")
            return 1
    remove_store(path)
    print(f"removed: {path}")
    return 0
