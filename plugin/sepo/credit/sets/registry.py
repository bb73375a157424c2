"""The data sets by name: what they contain, their licence, where they are published, and how they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sepo.credit.data import DEMO_PARTS, LabelledPair, read_pairs
from sepo.credit.sets import big_bench_mistake, prm800k, prmbench, qa_feedback, ragtruth, wmt_mqm
from sepo.credit.sets.rows import LeftOut, Reading
from sepo.errors import SepoError, nearest


@dataclass(frozen=True)
class DataSet:
    """A public data set.

    Args:
        name: its name on the command line and in results.
        content: what its pairs and its marks are.
        licence: licence of the data, as their authors state it.
        source: where it is published.
        files: which file or files to download.
        patterns: names of its files in a directory.
        read: reads one file into a ``Reading``.
    """

    name: str
    content: str
    licence: str
    source: str
    files: str
    patterns: Sequence[str]
    read: Callable[[Path, Reading], None]


SETS: Mapping[str, DataSet] = {
    each.name: each
    for each in (
        DataSet(
            "qa_feedback",
            "long answers of a model and their correction; annotators marked irrelevant, wrong and other spans",
            "Apache-2.0",
            "https://github.com/allenai/FineGrainedRLHF",
            "tasks/qa_feedback/data/dev_feedback.json (or train_feedback.json)",
            ("*feedback*.json",),
            qa_feedback.read,
        ),
        DataSet(
            "prmbench",
            "mathematical solutions in steps with errors of eight types put in; wrong steps are marked",
            "Apache-2.0",
            "https://huggingface.co/datasets/hitsmy/PRMBench_Preview",
            "prmtest_classified.jsonl",
            ("*.jsonl",),
            prmbench.read,
        ),
        DataSet(
            "big_bench_mistake",
            "chains of thought of a model for five tasks; the first wrong step is marked",
            "Apache-2.0",
            "https://github.com/WHGTyen/BIG-Bench-Mistake",
            "word_sorting.jsonl, tracking_shuffled_objects.jsonl, logical_deduction.jsonl, "
            "multistep_arithmetic.jsonl, dyck_languages.jsonl (one, or their directory)",
            ("*.jsonl",),
            big_bench_mistake.read,
        ),
        DataSet(
            "wmt_mqm",
            "translations of several systems; professional translators marked error spans",
            "Apache-2.0",
            "https://github.com/google/wmt-mqm-human-evaluation",
            "newstest2021/ende/mqm_newstest2021_ende.tsv or another mqm_*.tsv (one, or a directory of them)",
            ("mqm*.tsv",),
            wmt_mqm.read,
        ),
        DataSet(
            "ragtruth",
            "answers, summaries and descriptions by six models from given sources; hallucinated spans are marked",
            "MIT",
            "https://github.com/ParticleMedia/RAGTruth",
            "dataset/response.jsonl and dataset/source_info.jsonl, in one directory",
            ("response.jsonl",),
            ragtruth.read,
        ),
        DataSet(
            "prm800k",
            "mathematical solutions of a model in steps; labelers rated every step",
            "MIT",
            "https://github.com/openai/prm800k",
            "prm800k/data/phase2_test.jsonl or another phase*_*.jsonl (Git LFS: git lfs pull)",
            ("phase*.jsonl",),
            prm800k.read,
        ),
    )
}
"""The public data sets by name."""

BUILT_IN: Mapping[str, str] = {"obvious": "demo:obvious", "fluent": "demo:fluent"}
"""Other names of the built-in held-out pairs (see ``sepo.credit.data.DEMO_PARTS``)."""


@dataclass(frozen=True)
class ReadSet:
    """Pairs with the report of their reading.

    Args:
        name: name of the set in results: the registered name, or the source as given.
        source: what was read: a path, or a built-in name.
        pairs: the span-labelled pairs.
        rows: number of rows of the files.
        left_out: by reason, the rows that are not used.
        data_set: the registered set, or None.
    """

    name: str
    source: str
    pairs: Sequence[LabelledPair]
    rows: int
    left_out: Mapping[str, LeftOut]
    data_set: DataSet | None = None

    @property
    def unpaired(self) -> int:
        """Number of pairs without a chosen response."""
        return sum(not pair.chosen for pair in self.pairs)

    @property
    def types(self) -> dict[str, int]:
        """Number of spans by type, most frequent first."""
        return dict(Counter(span.type for pair in self.pairs for span in pair.spans).most_common())

    @property
    def languages(self) -> dict[str, int]:
        """Number of pairs by language of the response, most frequent first; without those of unknown language."""
        return dict(Counter(pair.language for pair in self.pairs if pair.language).most_common())

    def sample(self, rows: int | None) -> ReadSet:
        """Return the set with at most ``rows`` pairs: evenly spaced ones of a public set, the first ones of others."""
        if rows is None or rows >= len(self.pairs):
            return self
        if self.data_set is None:
            return replace(self, pairs=self.pairs[:rows])
        return replace(self, pairs=[self.pairs[index * len(self.pairs) // rows] for index in range(rows)])


def split_source(text: str) -> tuple[DataSet | None, str]:
    """Split ``NAME=PATH``; anything else is a path or a built-in name.

    Raises:
        SepoError: the part before the first ``=`` is not the name of a data set, and the whole is not a file.
    """
    name, equals, path = text.partition("=")
    if name in SETS:
        if equals and path:
            return SETS[name], path
        raise SepoError(
            f"{name} needs its file: {name}=PATH. Download {SETS[name].files} from {SETS[name].source} "
            f"({SETS[name].licence})."
        )
    if equals and not Path(text).expanduser().exists():
        raise SepoError(f"{text}: '{name}' is not a data set, expected {', '.join(SETS)}.{nearest(name, SETS)}")
    return None, text


def read_set(text: str, *, skip_damaged: bool = False) -> ReadSet:
    """Read a data set: ``NAME=PATH``, a JSON file of pairs, or a built-in set.

    Args:
        text: the source as given.
        skip_damaged: leave out damaged rows of a public set, and count them, instead of raising.

    Raises:
        SepoError: the name or the file does not exist, a row is damaged, or no row has a marked error.
    """
    found, path = split_source(text)
    if found is None:
        pairs = read_pairs(BUILT_IN.get(path, path))
        if path in (*BUILT_IN, *DEMO_PARTS):
            pairs = [replace(pair, language="en") for pair in pairs]
        return ReadSet(path, path, pairs, len(pairs), {})
    reading = Reading(skip_damaged)
    for file in _files(found, Path(path).expanduser()):
        found.read(file, reading)
    if not reading.pairs:
        reasons = "; ".join(f"{reason}: {each.count}, first {each.first}" for reason, each in reading.left_out.items())
        raise SepoError(
            f"{path} has no row of {found.name} with a marked error ({reasons or 'no rows'}); expected {found.files} "
            f"from {found.source}."
        )
    pairs = [replace(pair, row=index) for index, pair in enumerate(reading.pairs)]
    return ReadSet(found.name, path, pairs, reading.rows, reading.left_out, found)


def _files(data_set: DataSet, path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted({file for pattern in data_set.patterns for file in path.rglob(pattern) if file.is_file()})
    if files:
        return files
    what = f"a directory without {' or '.join(data_set.patterns)}" if path.is_dir() else "not a file"
    raise SepoError(
        f"{data_set.name}={path} is {what}; expected {data_set.files} from {data_set.source} ({data_set.licence})."
    )


def built_in_names() -> list[str]:
    """Return the names of the built-in sets."""
    return [*BUILT_IN, *DEMO_PARTS]
