"""RAGTruth: responses of six models to prompts with given sources; hallucinated spans are marked.

Format: README.md of github.com/ParticleMedia/RAGTruth; Niu et al. 2024 (arXiv 2401.00396). ``response.jsonl`` has one
JSON object per line with ``source_id``, ``model``, ``response``, ``quality`` and ``labels`` (``start``, ``end`` in
characters of the response, ``text``, ``label_type``, ``implicit_true``); ``source_info.jsonl``, in the same directory,
has ``source_id`` and ``prompt``. Rejected is a response with labels; chosen is the first response without any to the
same source, else the row is rejected-only. Left out are responses whose quality is not ``good``, as in the authors'
baseline, and labels with ``implicit_true``, which are correct but not in the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sepo.credit.data import ErrorSpan
from sepo.credit.sets.rows import Reading, json_rows, objects_of, range_of, short, text_of, value_of
from sepo.errors import SepoError

EXPECTED = "response.jsonl of RAGTruth: one object per line with source_id, response and labels"
SOURCES = "source_info.jsonl"


def read(path: Path, reading: Reading) -> None:
    """Read ``response.jsonl`` with ``source_info.jsonl`` beside it."""
    sources = path.parent / SOURCES
    if not sources.is_file():
        raise SepoError(f"{sources} does not exist; expected the prompts of RAGTruth beside {path.name}.")
    prompts: dict[str, str] = {}
    for where, row in json_rows(sources, expected=f"{SOURCES} of RAGTruth: one object per line with source_id, prompt"):
        prompts[_source(row, where)] = text_of(row, "prompt", where)
    rows = list(json_rows(path, expected=EXPECTED))
    right: dict[str, str] = {}
    for _, row in rows:
        clean = isinstance(row, Mapping) and row.get("labels") == [] and row.get("quality", "good") == "good"
        if clean and isinstance(row.get("response"), str) and row["response"].strip():
            right.setdefault(str(row.get("source_id")), row["response"])
    reading.each(iter(rows), lambda row, where: _use(row, where, reading, prompts, right))


def _source(row: Any, where: str) -> str:
    return str(value_of(row, "source_id", where, expected="the index of a source"))


def _use(row: Any, where: str, reading: Reading, prompts: Mapping[str, str], right: Mapping[str, str]) -> None:
    source, response = _source(row, where), value_of(row, "response", where, expected="a string")
    labels, quality = objects_of(row, "labels", where), row.get("quality", "good")
    if not isinstance(response, str):
        raise SepoError(f"{where}: response is {short(response)}, expected a string.")
    if source not in prompts:
        raise SepoError(f"{where}: source_id is {source}, which {SOURCES} does not have.")
    if quality != "good":
        reading.leave_out(f"quality is {quality}", where)
        return
    spans = []
    for place, label in enumerate(labels):
        at = f"{where}: labels[{place}]"
        start, end = range_of(label, response, at, of="response")
        if label.get("text", response[start:end]) != response[start:end]:
            raise SepoError(
                f"{at} has text {short(label['text'])}, but characters {start} to {end} of the response are "
                f"{short(response[start:end])}; expected equal texts."
            )
        if not label.get("implicit_true"):
            spans.append(ErrorSpan(start, end, text_of(label, "label_type", at)))
    if not spans:
        reading.leave_out("no span is marked", where)
        return
    reading.add(
        messages=({"role": "user", "content": prompts[source]},),
        chosen=right.get(source, ""),
        rejected=response,
        spans=tuple(spans),
        language="en",
    )
