"""Rendering of charts: PNG files, and SVG with the colors of the page."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sepo.report.charts import Chart, Line
from sepo.report.visible import one_line, shortened

COLOURS = {
    "ink": "#1c222a",
    "muted": "#586273",
    "grid": "#dce1e8",
    "chosen": "#1462b5",
    "rejected": "#b8530a",
    "0": "#00755a",
    "1": "#9b2f86",
    "2": "#1462b5",
    "3": "#b8530a",
    "4": "#6b6100",
    "5": "#5a5f68",
}
"""Colors by role, for a white background. The page defines the same roles for each of its themes."""
MOST_SUBJECTS = 6
"""Number of distinguishable colors for subjects; each has its own line pattern too."""

PNG_MARK = "sepo report"
"""Mark in the metadata of PNG files of reports."""
_SIZE = (4.4, 3.0)
_PATTERNS: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1.5, 1.5)),
    (0, (6, 2, 1.5, 2)),
    (0, (9, 3)),
    (0, (3, 1, 1, 1, 1, 1)),
)
_LABEL_CHARACTERS = 28
_HANDLE_POINTS, _CHARACTER_POINTS = 42, 5.6
"""Maximum width of a handle with its spaces, and of a character, in a legend; determines the number of columns."""
_TICKS = (1, 2, 2.5, 5, 10)
_SVG = "http://www.w3.org/2000/svg"
_LINK = "http://www.w3.org/1999/xlink"
_ROLES = {colour: role for role, colour in reversed(COLOURS.items())}
"""The first role of each color, as sides and subjects share some."""


@contextmanager
def _settings(chart: Chart) -> Iterator[None]:
    """Set matplotlib's settings for a report and restore them; names are not parsed as mathematics."""
    import matplotlib

    # The user's matplotlibrc is ignored. Reading the backend from rcParams would select one.
    defaults: dict[Any, Any] = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    changed = {
        **defaults,
        "svg.hashsalt": f"sepo-{chart.key}",
        "svg.fonttype": "none",
        "text.parse_math": False,
        "text.usetex": False,
        "font.size": 9.5,
        "axes.unicode_minus": True,
        "path.simplify": True,
    }
    with matplotlib.rc_context(changed), warnings.catch_warnings():
        # A name may have characters that the font lacks; the page shows them in the browser's font.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph")
        yield


def figure(chart: Chart, *, titled: bool = False) -> Any:
    """Render a chart.

    Args:
        chart: the chart.
        titled: put the title above and the legend below, for a standalone figure; otherwise the legend is above.

    Returns:
        A matplotlib figure that is not registered with pyplot.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    drawn = Figure(figsize=_SIZE, layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06))
    axes = drawn.add_subplot()
    handles = [_line(axes, line) for line in chart.lines]
    _axes(axes, chart)
    handles += _marks(axes, chart.marks)
    if len(handles) > 1:
        _legend(drawn, handles, [*(line.label for line in chart.lines), *chart.marks], below=titled)
    if titled:
        drawn.suptitle(shortened(one_line(chart.title), 60), color=COLOURS["ink"], fontsize=11, x=0.02, ha="left")
    return drawn


def _line(axes: Any, line: Line) -> Any:
    colour = COLOURS[line.colour]
    pattern = _PATTERNS[int(line.colour)] if line.colour.isdigit() else "-"
    if line.style == "steps":
        axes.stairs(line.y, line.x, fill=True, color=colour, alpha=0.14, linewidth=0)
        return axes.stairs(line.y, line.x, color=colour, linewidth=1.6, linestyle=pattern)
    if line.style == "points":
        (handle,) = axes.plot(line.x, line.y, color=colour, linestyle=":", linewidth=1, marker="o", markersize=4.5)
        if line.interval is not None:
            axes.vlines(line.x, *line.interval, color=colour, linewidth=1.2)
        return handle
    alone = "o" if len(line.x) == 1 else None
    (handle,) = axes.plot(line.x, line.y, color=colour, linewidth=1.8, linestyle=pattern, marker=alone)
    return handle


def _axes(axes: Any, chart: Chart) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlabel(one_line(chart.x_label), color=COLOURS["muted"])
    axes.set_ylabel(shortened(one_line(chart.y_label), _LABEL_CHARACTERS), color=COLOURS["muted"])
    axes.grid(True, color=COLOURS["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(COLOURS["muted"])
        spine.set_linewidth(0.8)
    axes.tick_params(colors=COLOURS["muted"], labelcolor=COLOURS["ink"], width=0.8, length=3)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=chart.x_whole, steps=_TICKS))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=_TICKS))
    percent = FuncFormatter(lambda value, _: f"{100 * value:.4g} %".replace("-", "−"))
    if chart.x_percent:
        axes.xaxis.set_major_formatter(percent)
    if chart.y_percent:
        axes.yaxis.set_major_formatter(percent)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.02), max(min(high, 1.02), 0.02))
    elif chart.lines[0].style == "steps":
        axes.set_ylim(bottom=0)
    if chart.x_limits is not None:
        axes.set_xlim(chart.x_limits)


def _marks(axes: Any, marks: Mapping[str, float]) -> list[Any]:
    """Draw vertical lines and return their handles for the legend."""
    patterns = [(0, (2, 2)), (0, (5, 2)), (0, (1, 3)), (0, (8, 3))]
    return [
        axes.axvline(place, color=COLOURS["muted"], linewidth=1.2, linestyle=patterns[index % len(patterns)])
        for index, place in enumerate(marks.values())
    ]


def _legend(drawn: Any, handles: Sequence[Any], labels: Sequence[str], *, below: bool) -> None:
    """Add the legend above or below the axes. Texts are set afterwards, as a legend skips labels that begin with _."""
    texts = [_middle_out(one_line(label)) for label in labels]
    legend = drawn.legend(
        handles,
        ["name"] * len(handles),
        loc="outside lower left" if below else "outside upper left",
        ncols=_columns(texts),
        frameon=False,
        borderpad=0.2,
        handlelength=2.4,
        columnspacing=1.2,
        labelcolor=COLOURS["ink"],
    )
    for text, label in zip(legend.get_texts(), texts, strict=True):
        text.set_text(label)


def _middle_out(text: str) -> str:
    """Replace the middle of a long name by an ellipsis: names of runs often differ at the end."""
    if len(text) <= _LABEL_CHARACTERS:
        return text
    half = _LABEL_CHARACTERS // 2
    return f"{text[: _LABEL_CHARACTERS - half - 1]}…{text[-half:]}"


def _columns(texts: Sequence[str]) -> int:
    """Return the largest number of columns of a legend that fit, filled column by column."""
    for count in range(len(texts), 1, -1):
        rows = -(-len(texts) // count)
        columns = [texts[place : place + rows] for place in range(0, len(texts), rows)]
        width = sum(_HANDLE_POINTS + _CHARACTER_POINTS * max(map(len, column)) for column in columns)
        if width <= 72 * _SIZE[0]:
            return len(columns)
    return 1


def png(chart: Chart) -> bytes:
    """Render a chart as PNG on a white background with its title; deterministic to the byte."""
    with _settings(chart):
        drawn, buffer = figure(chart, titled=True), io.BytesIO()
        drawn.savefig(buffer, format="png", dpi=200, metadata={"Software": PNG_MARK})
        return buffer.getvalue()


def svg(chart: Chart) -> str:
    """Render a chart as an SVG element for a page, without fixed colors or style sheet, and with unique identifiers.

    Text remains text, colors are custom properties of the page (``--chart-ink`` and others), and ``<title>`` and
    ``<desc>`` describe the chart for screen readers. The output is deterministic.
    """
    with _settings(chart):
        drawn, buffer = figure(chart), io.StringIO()
        drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())
    _clean(root, chart.key)
    _describe(root, chart)
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _LINK)
    return ET.tostring(root, encoding="unicode")


def _clean(root: ET.Element, key: str) -> None:
    """Remove what a page does not need, and make identifiers unique to the chart."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    used = {
        match for node in root.iter() for value in node.attrib.values() for match in re.findall(r"#([\w-]+)", value)
    }
    for node in root.iter():
        name = node.attrib.pop("id", None)
        if name in used:
            node.set("id", f"{key}-{name}")
        if (target := node.attrib.pop(f"{{{_LINK}}}href", None)) is not None:
            node.set("href", f"#{key}-{target[1:]}")
        if node.get("transform", "").startswith("rotate(-0 "):
            del node.attrib["transform"]
        if "clip-path" in node.attrib:
            node.set("clip-path", node.attrib["clip-path"].replace("url(#", f"url(#{key}-"))
        for property_name, value in _properties(node.attrib.pop("style", "")):
            node.set(property_name, value)


def _properties(style: str) -> Iterator[tuple[str, str]]:
    """Yield a style as attributes: the content security policy of the page allows no inline styles."""
    for part in filter(None, (part.strip() for part in style.split(";"))):
        name, _, value = (word.strip() for word in part.partition(":"))
        if name == "font":
            yield "font-size", value.split("px")[0].split()[-1]
        elif name == "font-family":
            continue
        elif (role := _ROLES.get(value.lower())) is not None:
            yield name, f"var(--chart-{role})"
        else:
            yield name, value


def _describe(root: ET.Element, chart: Chart) -> None:
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    names = [f"{chart.key}-title", f"{chart.key}-desc"]
    root.set("role", "img")
    root.set("aria-labelledby", " ".join(names))
    texts = {"title": chart.title, "desc": chart.description}
    for place, ((tag, text), name) in enumerate(zip(texts.items(), names, strict=True)):
        node = ET.Element(f"{{{_SVG}}}{tag}", {"id": name})
        node.text = one_line(text)
        root.insert(place, node)
