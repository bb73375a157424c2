"""`sepo show`: pairs in the terminal, with tokens colored by score and the selected ones marked."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

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
_LEVELS = ((2 / 3, "bold underline"), (1 / 3, "underline"), (0.0, "dim underline"))
"""Styles of selected tokens, by the least share of their weight in the largest one of the response."""

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
    weighed = any(side.weights is not None for pair in subject.pairs for side in (pair.chosen, pair.rejected))
    what = [subject.kind, *([f"{subject.rows:,} rows"] if subject.rows is not None else [])]
    what += [f"scored by {subject.scored_by}"] if subject.scored_by else []
    _print_line(console, f"{subject.name}: {', '.join(what)}", style="bold")
    if subject.pairs:
        _print_legend(console, marks, weighed=weighed)
    largest = _largest(subject.pairs)
    for pair in subject.pairs:
        _print_pair(console, pair, sides, marks=marks, largest=largest, scores=scores)
    for sentence in subject.missing:
        _print_line(console, f"note: {sentence}")


class _Marks(NamedTuple):
    """Marks in place of colors and underlines: around selected tokens, and before their weight."""

    start: str
    end: str
    times: str


def _marks(console: Console) -> _Marks | None:
    """Return the marks if colors and underlines are not available; None if they are."""
    if console.is_terminal and not console.no_color and console.color_system is not None:
        return None
    for marks in (_Marks("⟦", "⟧", "×"), _Marks("[[", "]]", "*")):
        try:
            "".join(marks).encode(console.encoding)
        except (UnicodeEncodeError, LookupError):
            continue
        return marks
    return marks


def _print_legend(console: Console, marks: _Marks | None, *, weighed: bool) -> None:
    from rich.text import Text

    if marks is not None:
        _print_line(
            console,
            f"selected tokens are in {marks.start}{marks.end}"
            + (f", with their weight after {marks.times}" if weighed else ""),
        )
        return
    legend = Text()
    if weighed:
        legend.append("selected, by weight: ")
        for (_, style), name in zip(_LEVELS, ("large", "medium", "small"), strict=True):
            legend.append(name, style=style)
            legend.append(" ")
        legend.append("negative", style=f"{_LEVELS[0][1]} strike")
    else:
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
    marks: _Marks | None,
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
            columns = ("token", "selected", "position", "score", *(() if side.weights is None else ("weight",)))
            print_table(None, columns, _score_rows(side), words=2)


def _summary(side: Side) -> str:
    count, kept = len(side.tokens), int(side.selected.sum())
    share = f" ({kept / side.counted:.0%})" if side.counted else ""
    share += f" of {side.counted:,} without the chat template's" if side.counted < count else ""
    share += _weights(side)
    scored = side.scores[np.isfinite(side.scores)]
    if not len(scored):
        return f"{count:,} tokens, {kept:,} selected{share}, no scores"
    both = side.selected & np.isfinite(side.scores)
    sums = f"sum of scores {float(scored.sum()):+.3f}, of the selected {float(side.scores[both].sum()):+.3f}"
    return f"{count:,} tokens, {kept:,} selected{share}, {sums}"


def _weights(side: Side) -> str:
    if side.weights is None or not side.selected.any():
        return ""
    own = side.weights[side.selected]
    return f", weights {_weight(own.min())} to {_weight(own.max())} (effective number {side.effective:.1f})"


def _weight(weight: float) -> str:
    return f"{weight:.3g}"


def _response(side: Side, *, marks: _Marks | None, largest: float) -> Text:
    """Return the response, token by token, with ``marks`` around each run of selected tokens of one weight, if given.

    Without marks, the style of selected tokens shows their weight.
    """
    from rich.text import Text

    line = Text()
    last = max((place for place, text in enumerate(side.tokens) if text), default=0)
    tokens = [_shown(text).rstrip("\n") if place == last else _shown(text) for place, text in enumerate(side.tokens)]
    selections = _selections(side) if marks is None else _numbers(side, times=marks.times)
    for selection, run in groupby(zip(tokens, side.scores, selections, strict=True), lambda token: token[2]):
        kept = selection is not None
        line.append(marks.start if kept and marks else "")
        for shown, score, _ in run:
            if marks is None:
                relative = float(score) / largest if math.isfinite(score) and largest > 0 else 0.0
                line.append(shown, style=" ".join(filter(None, [_style(relative), selection])))
            else:
                line.append("".join(f"\\u{ord(c):04x}" if c in "⟦⟧" else c for c in shown))
        line.append(f"{selection}{marks.end}" if kept and marks else "")
    return line


def _selections(side: Side) -> list[str | None]:
    """Return the style of each selected token; None for other tokens."""
    if side.weights is None:
        return ["bold underline" if kept else None for kept in side.selected]
    most = float(np.abs(side.weights).max(initial=0.0))
    return [
        f"{next(style for least, style in _LEVELS if abs(weight) >= least * most)}{' strike' if weight < 0 else ''}"
        if kept
        else None
        for weight, kept in zip(side.weights, side.selected, strict=True)
    ]


def _numbers(side: Side, *, times: str) -> list[str | None]:
    """Return the weight of each selected token with the mark before it, empty without weights; None for others."""
    if side.weights is None:
        return ["" if kept else None for kept in side.selected]
    return [
        f"{times}{_weight(weight)}" if kept else None for weight, kept in zip(side.weights, side.selected, strict=True)
    ]


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
        weight = [] if side.weights is None else [f"{side.weights[place]:.4g}" if kept else "-"]
        yield [f"'{one_line(text)}'", "selected" if kept else "", str(place), number, *weight]


def _shown(text: str) -> str:
    return visible(text).replace("\t", "␉").replace("\n", "↵\n")


def _print_indented(console: Console, text: Text) -> None:
    from rich.text import Text

    for line in text.wrap(console, max(console.width - 2, 10), overflow="fold"):
        console.print(Text("  ").append_text(line), soft_wrap=True)


def _print_line(console: Console, text: str, *, style: str = "") -> None:
    console.print(one_line(text), style=style, markup=False, highlight=False, emoji=False, soft_wrap=True)
