"""Reading and checking of span-labelled pairs: rows of a ranking data set with marked errors in rejected responses.

A file is a JSON list, or one JSON object per line (``.jsonl``), of rows like these (LLaMA-Factory's ranking format, in
its sharegpt and OpenAI forms)::

    {"conversations": [{"from": "human", "value": "How many legs has a spider?"}],
     "chosen": {"from": "gpt", "value": "It has eight legs."},
     "rejected": {"from": "gpt", "value": "It has six legs."},
     "rejected_error_spans": [{"start": 7, "end": 10, "type": "Wrong-Number"}],
     "system": "", "tools": "", "language": "en"}

``conversations`` may be ``messages`` with ``role`` and ``content``, or ``prompt``, a string; ``type``, ``system``,
``tools`` and ``language`` (ISO 639-1) may be absent. Spans are in characters of the rejected response,
``rejected[start:end]``; they may overlap.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from sepo.errors import SepoError, nearest

SPANS = "rejected_error_spans"
UNTYPED = "untyped"
"""Type of errors without a type."""

DEMO_PARTS: Mapping[str, str] = {
    "demo": "demo_heldout",
    "demo:obvious": "demo_heldout",
    "demo:fluent": "fluent_heldout",
}
"""The built-in data sets: held-out pairs with obvious or fluent errors (see ``sepo.demo.dataset``)."""

_TURNS = (("conversations", "from", "value"), ("messages", "role", "content"))
_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant"), "assistant"),
    **dict.fromkeys(("observation", "tool"), "observation"),
    "function_call": "function",
    "system": "system",
}
_HOW = '[{"start": 0, "end": 4, "type": "Wrong-Name"}], in characters of the rejected response'


@dataclass(frozen=True)
class ErrorSpan:
    """Characters ``start`` to ``end`` (exclusive) of the rejected response, and the type of error."""

    start: int
    end: int
    type: str = UNTYPED


@dataclass(frozen=True)
class LabelledPair:
    """One row of a ranking data set with the known errors of its rejected response.

    Args:
        row: index of the row in the file, from 0.
        messages: the turns before the responses, ``role`` and ``content``.
        chosen: the chosen response; the empty string if there is none, as only rejected responses are measured.
        rejected: the rejected response.
        spans: the known errors of the rejected response.
        system: the system prompt, or the empty string.
        tools: the tools as JSON text, or the empty string.
        language: code of the language of the responses (ISO 639-1), or the empty string.
        steps: characters (start, end) of the steps of the rejected response, in order; empty for lines and sentences.
        unlabelled: characters (start, end) of which it is not known whether they are wrong.
    """

    row: int
    messages: tuple[Mapping[str, str], ...]
    chosen: str
    rejected: str
    spans: tuple[ErrorSpan, ...]
    system: str = ""
    tools: str = ""
    language: str = ""
    steps: tuple[tuple[int, int], ...] = ()
    unlabelled: tuple[tuple[int, int], ...] = ()

    @property
    def conversation(self) -> dict[str, Any]:
        """The row as chat readers and prompts take it: ``messages``, ``answers``, ``system``, ``tools``."""
        return {
            "messages": [dict(turn) for turn in self.messages],
            "answers": [self.chosen or self.rejected, self.rejected],
            "system": self.system,
            "tools": self.tools,
        }


def read_pairs(source: str) -> list[LabelledPair]:
    """Read the pairs of a file or of a built-in data set.

    Args:
        source: a path, or a key of ``DEMO_PARTS``.

    Raises:
        SepoError: the file does not exist, or a row cannot be used; the message names the row and the field.
    """
    if source in DEMO_PARTS:
        file = resources.files("sepo.demo").joinpath("data", f"{DEMO_PARTS[source]}.json")
        return checked_pairs(json.loads(file.read_text(encoding="utf-8")), name=source)
    path = Path(source).expanduser()
    if not path.is_file():
        raise SepoError(
            f"'{source}' is not a file (from {Path.cwd()}), nor one of {', '.join(DEMO_PARTS)}; name a JSON file of "
            f"pairs with {SPANS}.{nearest(source, DEMO_PARTS)}"
        )
    return checked_pairs(read_rows(path), name=str(path))


def read_rows(path: Path) -> Any:
    """Return the contents of a JSON file, or the rows of a ``.jsonl`` file, unchecked.

    Raises:
        SepoError: the file cannot be read, or is not JSON.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SepoError(f"{path} cannot be read as UTF-8 text: {error}") from error
    if path.suffix != ".jsonl":
        return _json(text, where=str(path))
    lines = enumerate(text.split("\n"), start=1)  # splitlines() would divide strings at U+2028
    return [_json(line, where=f"{path}, line {number}") for number, line in lines if line.strip()]


def _json(text: str, *, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise SepoError(
            f"{where} is not JSON ({error}); expected a list of rows, or .jsonl with one row per line."
        ) from None


def checked_pairs(rows: Any, *, name: str) -> list[LabelledPair]:
    """Check rows as parsed from JSON.

    Args:
        rows: the list of rows.
        name: name of the file in error messages.

    Raises:
        SepoError: ``rows`` is not a list or is empty, no row has a span, or a row cannot be used.
    """
    if not isinstance(rows, list) or not rows:
        what = f"has {'no rows' if isinstance(rows, list) else f'a {type(rows).__name__} at its top level'}"
        raise SepoError(f"{name} {what}; expected a list of pairs with {SPANS}.")
    pairs = [_pair(row, index, f"row {index} of {name}") for index, row in enumerate(rows)]
    if not any(pair.spans for pair in pairs):
        raise SepoError(f"no row of {name} has a span in {SPANS}; expected known errors as {_HOW}.")
    return pairs


def _pair(row: Any, index: int, where: str) -> LabelledPair:
    if not isinstance(row, dict):
        raise SepoError(f"{where} is {_short(row)}, expected an object with chosen, rejected and {SPANS}.")
    messages = _messages(row, where)
    system = _text(row, "system", where)
    if messages and messages[0]["role"] == "system":
        system = system or messages[0]["content"]
        messages = messages[1:]
    if not messages or len(messages) % 2 == 0:
        raise SepoError(
            f"{where}: {len(messages)} turns before the response, expected 1, 3, ..., the last one from the user."
        )
    rejected = _response(row, "rejected", where)
    spans = _spans(row, rejected, where)
    return LabelledPair(
        index,
        messages,
        _response(row, "chosen", where),
        rejected,
        spans,
        system,
        _text(row, "tools", where),
        _text(row, "language", where),
    )


def _messages(row: Mapping[str, Any], where: str) -> tuple[dict[str, str], ...]:
    if isinstance(row.get("prompt"), str) and row["prompt"]:
        return ({"role": "user", "content": row["prompt"]},)
    for field, role, content in _TURNS:
        if field in row:
            turns = row[field]
            if not isinstance(turns, list):
                raise SepoError(f"{where}: {field} is {_short(turns)}, expected a list of turns.")
            return tuple(_turn(turn, role, content, f"{where}: {field}[{place}]") for place, turn in enumerate(turns))
    raise SepoError(f"{where} has the fields {', '.join(map(str, row))}; expected conversations, messages or prompt.")


def _turn(turn: Any, role: str, content: str, where: str) -> dict[str, str]:
    known = isinstance(turn, dict) and isinstance(turn.get(content), str) and turn.get(role) in _ROLES
    if not known:
        raise SepoError(
            f"{where} is {_short(turn)}, expected {{'{role}': ..., '{content}': a string}} with {role} one of "
            f"{', '.join(_ROLES)}."
        )
    return {"role": _ROLES[turn[role]], "content": turn[content]}


def _response(row: Mapping[str, Any], side: str, where: str) -> str:
    response = row.get(side)
    if isinstance(response, dict):
        response = response.get("value", response.get("content"))
    if not isinstance(response, str) or not response:
        raise SepoError(
            f"{where}: {side} is {_short(row.get(side))}, expected a response: a string, or a turn with one."
        )
    return response


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if value is None or isinstance(value, str):
        return value or ""
    raise SepoError(f"{where}: {field} is {_short(value)}, expected a string.")


def _spans(row: Mapping[str, Any], text: str, where: str) -> tuple[ErrorSpan, ...]:
    spans = row.get(SPANS)
    if not isinstance(spans, list):
        what = f"is {_short(spans)}" if SPANS in row else "is missing"
        raise SepoError(f"{where}: {SPANS} {what}, expected a list of spans (empty if nothing is wrong): {_HOW}.")
    return tuple(_span(span, text, f"{where}: {SPANS}[{place}]") for place, span in enumerate(spans))


def _span(span: Any, text: str, where: str) -> ErrorSpan:
    if not isinstance(span, dict) or not {"start", "end"} <= set(span):
        raise SepoError(f"{where} is {_short(span)}, expected an object with start and end: {_HOW}.")
    start, end, kind = span["start"], span["end"], span.get("type", UNTYPED)
    if not all(isinstance(place, int) and not isinstance(place, bool) for place in (start, end)):
        raise SepoError(f"{where} has start {start!r} and end {end!r}, expected two integers, in characters.")
    if not 0 <= start < end <= len(text):
        raise SepoError(
            f"{where} has start {start} and end {end}, expected 0 <= start < end <= {len(text)}, the characters of "
            "rejected."
        )
    if not isinstance(kind, str) or not kind:
        raise SepoError(f"{where}.type is {_short(kind)}, expected a string such as Wrong-Name.")
    return ErrorSpan(start, end, kind)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def error_types(pairs: Sequence[LabelledPair]) -> list[str]:
    """Return the types of all spans, most frequent first."""
    counts: dict[str, int] = {}
    for pair in pairs:
        for span in pair.spans:
            counts[span.type] = counts.get(span.type, 0) + 1
    return sorted(counts, key=lambda kind: (-counts[kind], kind))
