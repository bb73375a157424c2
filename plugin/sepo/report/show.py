"""`sepo show`: pairs in the terminal, with tokens colored by score and the selected ones marked."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from sepo.console import print_table, terminal
from sepo.report.subject import Pair, Side, Subject
from sepo.report.visible import one_line, visible
from sepo.selection import SIDES

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_FAVOURS, _AGAINST = (33, 102, 172), (217, 95, 2)
"""Ends of the color scale: blue favors the chosen response, orange disfavors it (distinguishable for color-blind)."""

_PALE = (244, 244, 244)
_FAINT = 0.05
"""Scores below this share of the largest ones are not colored."""


def show(subject: Subject, *, sides: Sequence[str] = SIDES, scores: bool = False) -> None:
    """Print a subject's pairs.

    All text from data is made visible: no control character or escape sequence of a text reaches the terminal.

    Args:
        subject: return value of ``read_subject``.
        sides: the sides to print.
        scores: also print a table with the score of every token.
    """
    with suppress(AttributeError, ValueError, OSError):  # a stream that is not a file
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    console = terminal()
    marks = _marks(console)
    what = [subject.kind, *([f"{subject.rows:,} rows"] if subject.rows is not None else [])]
    what += [f"scored by {subject.scored_by}"] if subject.scored_by else []
    _print_line(console, f"{subject.name}: {', '.join(what)}", style="bold")
    if subject.pairs:
        _print_legend(console, marks)
    largest = _largest(subject.pairs)
    for pair in subject.pairs:
        _print_pair(console, pair, sides, marks=marks, largest=largest, scores=scores)
    for sentence in subject.missing:
        _print_line(console, f"note: {sentence}")


def _marks(console: Console) -> tuple[str, str] | None:
    """Return the marks around selected tokens if colors and underlines are not available; None if they are."""
    if console.is_terminal and not console.no_color and console.color_system is not None:
        return None
    for marks in (("⟦", "⟧"), ("[[", "]]")):
        try:
            "".join(marks).encode(console.encoding)
        except (UnicodeEncodeError, LookupError):
            continue
        return marks
    return marks


def _print_legend(console: Console, marks: tuple[str, str] | None) -> None:
    from rich.text import Text

    if marks is not None:
        _print_line(console, f"selected tokens are in {marks[0]}{marks[1]}")
        return
    legend = Text()
    legend.append("selected", style="bold underline")
    legend.append("   ")
    legend.append("favors the chosen response", style=_style(1.0))
    legend.append("   ")
    legend.append("disfavors it", style=_style(-1.0))
    console.print(legend)


def _print_pair(
    console: Console,
    pair: Pair,
    sides: Sequence[str],
    *,
    marks: tuple[str, str] | None,
    largest: float,
    scores: bool,
) -> None:
    from rich.text import Text

    row = "row unknown" if pair.row < 0 else f"row {pair.row:,}"
    console.print()
    _print_line(console, row if pair.step is None else f"{row}, at step {pair.step:,}", style="bold")
    if pair.prompt:
        _print_indented(console, Text(_shown(pair.prompt), style="dim"))
    for name in sides:
        side: Side = getattr(pair, name)
        _print_line(console, f"{name}: {_summary(side)}")
        _print_indented(console, _response(side, marks=marks, largest=largest))
        if scores:
            print_table(None, ("token", "selected", "position", "score"), _score_rows(side), words=2)


def _summary(side: Side) -> str:
    count, kept = len(side.tokens), int(side.selected.sum())
    share = f" ({kept / side.counted:.0%})" if side.counted else ""
    share += f" of {side.counted:,} without the chat template's" if side.counted < count else ""
    scored = side.scores[np.isfinite(side.scores)]
    if not len(scored):
        return f"{count:,} tokens, {kept:,} selected{share}, no scores"
    both = side.selected & np.isfinite(side.scores)
    sums = f"sum of scores {float(scored.sum()):+.3f}, of the selected {float(side.scores[both].sum()):+.3f}"
    return f"{count:,} tokens, {kept:,} selected{share}, {sums}"


def _response(side: Side, *, marks: tuple[str, str] | None, largest: float) -> Text:
    """Return the response, token by token, with ``marks`` around each run of selected tokens, if given."""
    from rich.text import Text

    line = Text()
    last = max((place for place, text in enumerate(side.tokens) if text), default=0)
    tokens = [_shown(text).rstrip("\n") if place == last else _shown(text) for place, text in enumerate(side.tokens)]
    for kept, run in groupby(zip(tokens, side.scores, side.selected, strict=True), lambda token: bool(token[2])):
        line.append(marks[0] if kept and marks else "")
        for shown, score, _ in run:
            if marks is None:
                relative = float(score) / largest if math.isfinite(score) and largest > 0 else 0.0
                line.append(shown, style=" ".join(filter(None, [_style(relative), "bold underline" if kept else ""])))
            else:
                line.append("".join(f"\\u{ord(c):04x}" if c in "⟦⟧" else c for c in shown))
        line.append(marks[1] if kept and marks else "")
    return line


def _style(relative: float) -> str:
    """Return the style of a score relative to the largest: black or white on its color; none for small scores."""
    strength = min(1.0, abs(relative))
    if strength < _FAINT:
        return ""
    end = _FAVOURS if relative > 0 else _AGAINST
    red, green, blue = (round(pale + (full - pale) * strength) for pale, full in zip(_PALE, end, strict=True))
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    return f"{'black' if bright else 'white'} on rgb({red},{green},{blue})"


def _largest(pairs: Iterable[Pair]) -> float:
    """Return the absolute score with the full color, which few scores exceed."""
    scores = np.concatenate([np.empty(0), *(side.scores for pair in pairs for side in (pair.chosen, pair.rejected))])
    sizes = np.abs(scores[np.isfinite(scores)])
    return float(np.quantile(sizes, 0.98)) if len(sizes) else 0.0


def _score_rows(side: Side) -> Iterable[list[str]]:
    for place, (text, score, kept) in enumerate(zip(side.tokens, side.scores, side.selected, strict=True)):
        number = f"{float(score):+.4f}" if math.isfinite(score) else "-"
        yield [f"'{one_line(text)}'", "selected" if kept else "", str(place), number]


def _shown(text: str) -> str:
    return visible(text).replace("\t", "␉").replace("\n", "↵\n")


def _print_indented(console: Console, text: Text) -> None:
    from rich.text import Text

    for line in text.wrap(console, max(console.width - 2, 10), overflow="fold"):
        console.print(Text("  ").append_text(line), soft_wrap=True)


def _print_line(console: Console, text: str, *, style: str = "") -> None:
    console.print(one_line(text), style=style, markup=False, highlight=False, emoji=False, soft_wrap=True)
