"""Segmentation of a response into steps (lines and sentences), from the texts of its tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SENTENCE = re.compile(r"[.!?…][.!?…\"'”’)\]*_]*\Z|[。！？][”’」』）]*\Z")
_IDEOGRAPHIC = re.compile(r"[。！？][”’」』）]*\Z")
_ENUMERATOR = re.compile(r"\W*(\d+|[A-Za-z])\.\Z")
_TAIL = 16
"""Number of characters searched before a boundary: a sentence end with its closing quotes and brackets."""


def step_ids(pieces: Sequence[str]) -> list[int]:
    """Number the steps of a response.

    A step ends after a token that ends a line, or a sentence: ``.``, ``!`` or ``?`` (with closing quotes or brackets),
    followed by whitespace or the end, or one of ``。！？``. A full stop inside a token, before a letter or digit
    (``3.14``) or after an enumerator (``1.``) does not end a step. Whitespace after the end belongs to the step that
    ended, and so does a token without text (an end-of-turn token). Boundaries are between tokens: a token in which one
    sentence ends and the next begins belongs to the first.

    Args:
        pieces: the text of each token, leading spaces included, special tokens empty; a token that is a part of a
            character may be anything.

    Returns:
        One number per token, from 0, non-decreasing and without gaps.

    Example:
        >>> step_ids(["It", " is", " 3", ".", "5", " m", ".", " Yes", "!", "", "\\n"])
        [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]
    """
    numbers, step, current = [], 0, ""
    for index, piece in enumerate(pieces):
        numbers.append(step)
        current += piece
        following = pieces[index + 1] if index + 1 < len(pieces) else ""
        if following and not following.isspace() and _ended(current, following):
            step += 1
            current = ""
    return numbers


def _ended(text: str, following: str) -> bool:
    """Return whether the step is complete after ``text``, given the following piece."""
    bare = text.rstrip()
    if not bare:
        return False
    if "\n" in text[len(bare) :]:
        return True
    tail = bare[-_TAIL:]
    if not _SENTENCE.search(tail) or (len(bare) <= _TAIL and _ENUMERATOR.match(bare)):
        return False
    return len(bare) < len(text) or following[0].isspace() or _IDEOGRAPHIC.search(tail) is not None
