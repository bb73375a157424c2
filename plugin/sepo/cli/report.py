"""`sepo report` and `sepo show`: the contents of a run or a store as one page with figures, and in the terminal."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sepo.errors import SepoError

if TYPE_CHECKING:
    from sepo.report.charts import Chart
    from sepo.report.subject import Subject

_KEY_CHARACTERS = 12
_SHOWN_ROWS = 3


def add_report(report: argparse.ArgumentParser) -> None:
    """Add the options of `sepo report` to its parser."""
    report.description = (
        "Write one HTML file that needs no network: a heat map of the tokens with the selected ones outlined, "
        "distribution and accumulation of the scores, training metrics, recipe and versions. Several runs or stores "
        "are shown side by side. For a directory of sepo pairs: what was sampled, rewards, lengths, margins, ties and "
        "examples."
    )
    report.add_argument(
        "places",
        nargs="+",
        metavar="RUN_DIR_OR_STORE",
        help="output_dir of a run; a store: its directory, or a prefix of its key as `sepo scores ls` prints it; or, "
        "alone, a directory of pairs or the results of `sepo credit -o FILE.json`",
    )
    report.add_argument(
        "-o",
        "--output",
        metavar="FILE.html",
        help="default: report.html in a run's directory; in the working directory, NAME-report.html for a store and "
        "report.html for several runs or stores",
    )
    report.add_argument("--figures", metavar="DIR", help="also write each chart as a PNG to this directory")
    report.add_argument("--force", action="store_true", help="replace files that are not reports")


def run_report(options: argparse.Namespace) -> int:
    """Write the report.

    Returns:
        The exit status, 0.

    Raises:
        SepoError: a run or store does not exist, too many are given, or a file may not or cannot be written.
    """
    from sepo.console import print_lines
    from sepo.report.drawing import MOST_SUBJECTS
    from sepo.report.files import check_output, write_report
    from sepo.report.page import PAGE_MARK, charts, page, with_unique_names
    from sepo.report.reading import read_subject

    if any(_is_pairs(place) for place in options.places):
        return _report_pairs(options)
    if len(options.places) == 1 and Path(options.places[0]).suffix == ".json":
        return _credit_report(options)
    if len(options.places) > MOST_SUBJECTS:
        raise SepoError(f"{len(options.places)} runs and stores are given, expected at most {MOST_SUBJECTS}.")
    if options.output is not None:
        check_output(Path(options.output), mark=PAGE_MARK, force=options.force)
    folder = None if options.figures is None else _figures_folder(Path(options.figures))
    subjects = with_unique_names([read_subject(Path(place), name=_name(place)) for place in options.places])
    output = Path(options.output) if options.output is not None else _default_output(subjects)
    output = check_output(output, mark=PAGE_MARK, force=options.force)
    drawn = charts(subjects)
    figures = [] if folder is None else _write_figures(drawn, folder, force=options.force)
    made = page(subjects, drawn)
    write_report(output, made.text.encode())
    print_lines(
        [
            *(f"missing in {subject.name}: {text}" for subject in subjects for text in subject.missing),
            f"written: {output} ({len(made.text.encode()) / 1e6:.1f} MB, {made.summary})",
            *([f"written: {folder} ({len(figures)} figures)"] if folder is not None else []),
        ]
    )
    return 0


def _is_pairs(place: str) -> bool:
    from sepo.pairs.status import is_pairs

    return is_pairs(Path(place).expanduser())


def _report_pairs(options: argparse.Namespace) -> int:
    """Write the report of the pairs in a directory."""
    from sepo.console import print_lines
    from sepo.pairs.page import pairs_opening
    from sepo.report.files import check_output, write_report
    from sepo.report.page import PAGE_MARK, page

    if len(options.places) > 1:
        raise SepoError("a directory of pairs is given with others; a report shows the pairs of one directory alone.")
    place = Path(options.places[0]).expanduser()
    given = place / "report.html" if options.output is None else Path(options.output)
    output = check_output(given, mark=PAGE_MARK, force=options.force)
    folder = None if options.figures is None else _figures_folder(Path(options.figures))
    opening = pairs_opening(place)
    figures = [] if folder is None else _write_figures(opening.charts, folder, force=options.force)
    text = page([], [], opening=opening).text
    write_report(output, text.encode())
    written = [f"written: {output} ({len(text.encode()) / 1e6:.1f} MB, {len(opening.examples)} examples)"]
    print_lines([*written, *([] if folder is None else [f"written: {folder} ({len(figures)} figures)"])])
    return 0


def _credit_report(options: argparse.Namespace) -> int:
    """Write the page of results of `sepo credit`."""
    from sepo.cli.credit_page import credit_page, read_results
    from sepo.report.files import check_output, write_report
    from sepo.report.page import PAGE_MARK

    place = Path(options.places[0]).expanduser()
    if options.figures is not None:
        raise SepoError("--figures is of runs and stores; `sepo credit --figure` plots its results.")
    output = Path(options.output) if options.output is not None else place.with_suffix(".html")
    output = check_output(output, mark=PAGE_MARK, force=options.force)
    made = credit_page(read_results(place))
    write_report(output, made.text.encode())
    print(f"written: {output} ({len(made.text.encode()) / 1e6:.1f} MB)")
    return 0


def add_show(show: argparse.ArgumentParser) -> None:
    """Add the options of `sepo show` to its parser."""
    show.description = (
        "Print pairs with their tokens colored by score and the selected ones marked. STORE_OR_RUN is the output_dir "
        "of a run, the directory of a store of token scores, or a prefix of its key as `sepo scores ls` prints it."
    )
    show.add_argument("place", metavar="STORE_OR_RUN")
    which = show.add_mutually_exclusive_group()
    which.add_argument("--row", type=int, metavar="N", help="print this row of the data set, counted from 0")
    spread = f"print K rows, spread over the data set (default: {_SHOWN_ROWS})"
    which.add_argument("--rows", type=int, metavar="K", default=_SHOWN_ROWS, help=spread)
    show.add_argument("--side", choices=("both", "chosen", "rejected"), default="both", help="which responses")
    show.add_argument("--scores", action="store_true", help="also print a table with the score of every token")


def run_show(options: argparse.Namespace) -> int:
    """Print the requested pairs.

    Returns:
        The exit status: 1 if there is nothing to show.

    Raises:
        SepoError: the run, store or row does not exist.
    """
    from sepo.report.reading import read_subject
    from sepo.report.show import show

    if options.rows < 1:
        raise SepoError(f"--rows is {options.rows}, expected at least 1.")
    rows = None if options.row is None else [options.row]
    subject = read_subject(Path(options.place), pairs=options.rows, rows=rows, spread=False)
    if rows and not subject.pairs and subject.rows is not None and not 0 <= options.row < subject.rows:
        raise SepoError(f"--row is {options.row}, expected a row from 0 to {subject.rows - 1} of {options.place}.")
    show(subject, sides=("chosen", "rejected") if options.side == "both" else (options.side,), scores=options.scores)
    return 0 if subject.pairs else 1


def _name(place: str) -> str:
    """Return the directory's name, or for a store's key the prefix that `sepo scores ls` prints."""
    name = Path(place).expanduser().absolute().name
    return name[:_KEY_CHARACTERS] if re.fullmatch(r"[0-9a-f]{32}", name) else name


def _default_output(subjects: Sequence[Subject]) -> Path:
    if len(subjects) > 1:
        return Path("report.html")
    (subject,) = subjects
    if subject.kind == "run":
        return subject.path / "report.html"
    return Path(f"{re.sub(r'[^A-Za-z0-9._-]+', '-', subject.name).strip('-.')[:60] or 'store'}-report.html")


def _figures_folder(folder: Path) -> Path:
    folder = folder.expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SepoError(f"--figures {folder}: cannot create the directory: {error.strerror or error}.") from error
    return folder


def _write_figures(drawn: Sequence[Chart], folder: Path, *, force: bool) -> list[Path]:
    from sepo.report.drawing import PNG_MARK, png
    from sepo.report.files import check_output, write_report

    files = [check_output(folder / f"{chart.key}.png", mark=PNG_MARK, force=force) for chart in drawn]
    for chart, file in zip(drawn, files, strict=True):
        write_report(file, png(chart))
    return files
