"""Untrusted text made visible: without hidden characters or changes of reading direction."""

from __future__ import annotations

import unicodedata
from typing import Any

_KEPT = "\n\t"
_JOINERS = "\u200c\u200d"
"""Zero-width joiners, which are part of emoji and several scripts."""
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_LARGE = 1e15
_PICTURES = 0x2400
"""Start of the Unicode block of control pictures."""


def visible(text: str) -> str:
    r"""Escape invisible characters: control and format characters, lone surrogates, unassigned code points.

    Line breaks and tabs are kept, and so are joiners between non-Latin letters.

    Args:
        text: any string, lone surrogates included.

    Returns:
        A string that UTF-8 can encode, without bidirectional controls.

    Example:
        >>> visible("a\x00b\u202ec")
        'a␀b⟨U+202E⟩c'
    """
    if text.isprintable():
        return text
    return "".join(_shown(text, place, character) for place, character in enumerate(text))


def one_line(text: str) -> str:
    """Escape like ``visible``, and line breaks and tabs too, for names."""
    return visible(text).replace("\n", "␊").replace("\t", "␉")


def clipped(text: str, most: int) -> str:
    """Truncate a text to ``most`` characters and append its length; shorter texts are unchanged."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text):,} characters)"


def shortened(text: str, most: int) -> str:
    """Truncate a text to ``most`` characters, the last of them an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _shown(text: str, place: int, character: str) -> str:
    if character.isprintable() or character in _KEPT or unicodedata.category(character) not in _HIDDEN:
        return character
    around = text[place - 1 : place] + text[place + 1 : place + 2]
    if character in _JOINERS and place > 0 and len(around) == 2 and min(around) > "\u02ff":
        return character
    code = ord(character)
    if code < 0x20:
        return chr(_PICTURES + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def number(value: Any, *, digits: int = 4) -> str:
    """Format a number for reading, with a true minus sign; ``–`` for None.

    Example:
        >>> number(-1234.5), number(0.00001234), number(float("nan"))
        ('−1,234', '1.234e−05', 'not a number')
    """
    if value is None:
        return "–"
    if isinstance(value, int) and abs(value) < _LARGE:
        return f"{value:,}".replace("-", "−")
    try:
        wide = float(value)
    except OverflowError:
        return "∞" if value > 0 else "−∞"
    if wide != wide:
        return "not a number"
    if wide in (float("inf"), float("-inf")):
        return "∞" if wide > 0 else "−∞"
    shown = f"{wide:,.0f}" if 1000 <= abs(wide) < _LARGE else f"{wide:.{digits}g}"
    return shown.replace("-", "−")
