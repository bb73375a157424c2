"""WMT MQM: translations of several systems, in which professional translators marked errors.

Format: README.md of github.com/google/wmt-mqm-human-evaluation, and mqm_viewer/README.md of
github.com/google-research/google-research; Freitag et al. 2021 (arXiv 2104.14478). Tab-separated, one line per error,
with a header: ``system``, ``doc``, segment numbers (``doc_id`` and ``seg_id``, or ``docSegId`` and ``globalSegId``),
``rater``, ``source``, ``target``, ``category``, ``severity``. The error is between ``<v>`` and ``</v>`` in the target,
or in the source (an omission; it counts for the score and has no span). Some files quote fields as spreadsheets do.

The spans of a translation are those of all its raters. Its score is the sum of the weights of its errors, averaged over
raters (major 5, minor 1, minor punctuation 0.1, non-translation 25, neutral and source errors 0, as in the paper).
Rejected is every translation with a marked span; chosen is the translation of the same segment with the lowest score,
if that is lower, else the row is rejected-only. The languages are those of the file's name or of ``doc``
(``mqm_newstest2021_ende.tsv``, ``doc42:en-de``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sepo.credit.data import ErrorSpan
from sepo.credit.sets.rows import Reading, lines, read_text, short
from sepo.errors import SepoError

EXPECTED = "mqm_*.tsv of WMT MQM: tab-separated, with the columns system, doc, ..., category and severity"
COLUMNS = ("system", "doc", "rater", "source", "target", "category", "severity")
SEGMENTS = ("doc_id", "seg_id", "docSegId", "globalSegId", "doc_seg_id", "global_seg_id")
LANGUAGES = {
    "cs": "Czech", "de": "German", "en": "English", "es": "Spanish", "fr": "French", "he": "Hebrew", "hi": "Hindi",
    "is": "Icelandic", "ja": "Japanese", "ko": "Korean", "ru": "Russian", "uk": "Ukrainian", "zh": "Chinese",
}  # fmt: skip
_WEIGHTS = {"critical": 5.0, "major": 5.0, "minor": 1.0, "neutral": 0.0, "no-error": 0.0, "": 0.0}
_MINOR_PUNCTUATION, _NON_TRANSLATION = 0.1, 25.0
_TAG = re.compile(r"</?v>")
_PAIR = re.compile(rf"({'|'.join(LANGUAGES)})-?({'|'.join(LANGUAGES)})(?![A-Za-z])")
_CODE = {name.lower(): code for code, name in LANGUAGES.items()}
_NAMED = re.compile(rf"({'|'.join(_CODE)})-({'|'.join(_CODE)})")


@dataclass
class _Translation:
    where: str
    target: str
    spans: set[ErrorSpan] = field(default_factory=set)
    weights: dict[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float:
        return sum(self.weights.values()) / len(self.weights)


@dataclass
class _Segment:
    source: str
    languages: tuple[str, str] | None
    systems: dict[str, _Translation] = field(default_factory=dict)
    unusable: dict[str, tuple[str, str]] = field(default_factory=dict)


def read(path: Path, reading: Reading) -> None:
    """Read one file."""
    segments: dict[tuple[str, ...], _Segment] = {}
    reading.each(_rows(path), lambda row, where: _use(row, where, path, segments))
    for segment in segments.values():
        _pairs(segment, reading)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str] | list[str]]]:
    """Yield the lines as values by column, or as they are if values are missing."""
    found = [(number, line.split("\t")) for number, line in lines(read_text(path, expected=EXPECTED))]
    columns = found[0][1] if found else []
    segments = [name for name in SEGMENTS if name in columns]
    if not set(COLUMNS) <= set(columns) or not segments:
        raise SepoError(
            f"line 1 of {path} is {short(columns)}; expected the columns {', '.join(COLUMNS)} and one of "
            f"{', '.join(SEGMENTS)}, separated by tabs."
        )
    places = {name: columns.index(name) for name in (*COLUMNS, *segments)}
    quoted = _is_quoted([value for _, row in found for value in row])
    for number, row in found[1:]:
        values = [_unquoted(value) for value in row] if quoted else row
        complete = len(row) > max(places.values())
        yield (
            f"line {number} of {path}",
            {name: values[place] for name, place in places.items()} if complete else row,
        )


def _is_quoted(values: list[str]) -> bool:
    """Return whether a spreadsheet wrote the file: all values with quotes are in quotes, with doubled ones inside."""
    with_quotes = [value for value in values if '"' in value and not value.startswith("{")]
    inner = [value[1:-1] for value in with_quotes]
    return (
        all(len(value) > 1 and value[0] == value[-1] == '"' for value in with_quotes)
        and all('"' not in text.replace('""', "") for text in inner)
        and any('""' in text for text in inner)
    )


def _unquoted(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] == '"'
    return value[1:-1].replace('""', '"') if quoted else value


def _use(row: dict[str, str] | list[str], where: str, path: Path, segments: dict[tuple[str, ...], _Segment]) -> None:
    if isinstance(row, list):
        raise SepoError(f"{where} has {len(row)} values; expected one for each of the columns of line 1.")
    severity = row["severity"].strip().lower()
    if severity not in _WEIGHTS:
        raise SepoError(
            f"{where}: severity is {row['severity']!r}, expected one of Major, Minor, Neutral, Critical, No-error."
        )
    key = (row["doc"], *(row[name] for name in SEGMENTS if name in row))
    segment = segments.setdefault(key, _Segment(_TAG.sub("", row["source"]), _languages(row["doc"], path)))
    target, spans = _spans(row["target"])
    system = row["system"]
    if spans is None:
        segment.unusable[system] = ("a <v> has no </v>", where)
        return
    translation = segment.systems.setdefault(system, _Translation(where, target))
    if translation.target != target:
        segment.unusable[system] = ("raters saw different texts", where)
        return
    weight = _weight(row["category"], severity)
    translation.weights[row["rater"]] = translation.weights.get(row["rater"], 0.0) + weight
    if weight > 0:
        if not spans and row["category"].lower().startswith("non-translation"):
            spans = [(0, len(target))]
        translation.spans |= {ErrorSpan(start, end, row["category"]) for start, end in spans if end > start}


def _weight(category: str, severity: str) -> float:
    name = category.strip().lower()
    if name.startswith("source") or not _WEIGHTS[severity]:
        return 0.0
    if name.startswith("non-translation"):
        return _NON_TRANSLATION
    return _MINOR_PUNCTUATION if name == "fluency/punctuation" and severity == "minor" else _WEIGHTS[severity]


def _spans(marked: str) -> tuple[str, list[tuple[int, int]] | None]:
    """Return the text without tags and its marked characters; None if a tag has no counterpart.

    >>> _spans("a <v>bc</v> d")
    ('a bc d', [(2, 4)])
    """
    text, spans, start, last = "", [], None, 0
    for tag in _TAG.finditer(marked):
        text += marked[last : tag.start()]
        last = tag.end()
        if (tag.group() == "<v>") != (start is None):
            return _TAG.sub("", marked), None
        if start is None:
            start = len(text)
        else:
            spans.append((start, len(text)))
            start = None
    return text + marked[last:], spans if start is None else None


def _languages(doc: str, path: Path) -> tuple[str, str] | None:
    """Return the codes of source and target language, or None.

    >>> _languages("doc42:en-de", Path("x.tsv")), _languages("doc", Path("mqm_newstest2021_zhen.tsv"))
    (('en', 'de'), ('zh', 'en'))
    """
    suffix = doc.rpartition(":")[2].lower() if ":" in doc else ""
    if named := _NAMED.fullmatch(suffix):
        return _CODE[named[1]], _CODE[named[2]]
    found = _PAIR.fullmatch(suffix) or next(
        (match for part in re.split(r"[_.]", path.stem) if (match := _PAIR.fullmatch(part))), None
    )
    return None if found is None else (found[1], found[2])


def _prompt(segment: _Segment) -> str:
    if segment.languages is None:
        return f"Translate:\n{segment.source}"
    source, target = (LANGUAGES[code] for code in segment.languages)
    return f"Translate from {source} to {target}:\n{segment.source}"


def _pairs(segment: _Segment, reading: Reading) -> None:
    for reason, where in segment.unusable.values():
        reading.leave_out(reason, where)
    usable = {name: each for name, each in segment.systems.items() if name not in segment.unusable}
    order = sorted(usable, key=lambda name: (usable[name].score, name))
    for each in usable.values():
        if not each.spans:
            reading.leave_out("translations without a marked span", each.where)
            continue
        reading.add(
            messages=({"role": "user", "content": _prompt(segment)},),
            chosen=_better(each, order, usable),
            rejected=each.target,
            spans=tuple(sorted(each.spans, key=lambda span: (span.start, span.end, span.type))),
            language="" if segment.languages is None else segment.languages[1],
        )


def _better(rejected: _Translation, order: list[str], usable: Mapping[str, _Translation]) -> str:
    best = (usable[name] for name in order)
    return next((each.target for each in best if each.score < rejected.score and each.target != rejected.target), "")
