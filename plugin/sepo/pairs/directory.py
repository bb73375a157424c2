"""The directory of pairs: its settings, and the files that are written when all samples are judged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sepo.errors import SepoError
from sepo.evaluation.sample_file import begin_or_compare
from sepo.pairs.parts import KEY, remove_parts
from sepo.pairs.records import JudgedPrompt, ranking_rows, sample_line
from sepo.pairs.summary import PairsSummary, PromptCounts, pairs_summary
from sepo.score_store.disk import locked, make_folder, replace_durably

DATASET = "pairs"
"""Name of the data set."""
PAIRS, SAMPLES = "pairs.jsonl", "samples.jsonl"
INFO, SUMMARY, SETTINGS = "dataset_info.json", "summary.json", "pairs_settings.json"
_LOCK, PARTS = ".pairs.lock", ".parts"


class PairsDirectory:
    """A directory in which pairs are made, by any number of processes with the same settings.

    Args:
        folder: the directory; created if absent.
        settings: everything that samples, rewards and pairs depend on, as JSON.
        notes: what is stored in addition and not compared.

    Raises:
        SepoError: the directory has samples with other settings, or files of another origin, or cannot be written.
    """

    def __init__(self, folder: Path, *, settings: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
        self.folder = folder
        self.digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        make_folder(folder, key=KEY)
        with self._alone():
            written = (PAIRS, SAMPLES, INFO, SUMMARY)
            begun = any(self.parts.glob("*.json")) or any((folder / name).exists() for name in written)
            begin_or_compare(
                folder, settings, notes, file=SETTINGS, written=written, name=f"{KEY} {folder}", replaces=not begun
            )

    @property
    def parts(self) -> Path:
        """Directory of the results by work unit, until the pairs are written."""
        return self.folder / PARTS

    @property
    def finished(self) -> bool:
        """Whether the pairs are written."""
        return (self.folder / SUMMARY).is_file()

    def summary(self) -> PairsSummary:
        """Return the summary of finished pairs.

        Raises:
            SepoError: a file is missing or damaged.
        """
        for name in (PAIRS, SAMPLES, INFO):
            if not (self.folder / name).is_file():
                raise SepoError(
                    f"{self.folder} has {SUMMARY} and no {name}; restore it, or remove the directory to make its pairs "
                    "again."
                )
        try:
            return PairsSummary.from_dict(json.loads((self.folder / SUMMARY).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SepoError(
                f"{self.folder / SUMMARY} cannot be read ({error!r}); remove it, and the pairs are made again."
            ) from error

    def finish(self, judged: Iterable[JudgedPrompt], *, counts: PromptCounts, seed: int) -> PairsSummary:
        """Write samples, pairs and summary, unless another process has; the summary is written last.

        Args:
            judged: all prompts, in their order; read only if the files are not there yet.
            counts: the rows that the prompts were read from.
            seed: seed of the samples.

        Raises:
            SepoError: no prompt has a pair (the samples are written), or a file cannot be written.
        """
        with self._alone():
            if not self.finished:
                prompts = list(judged)
                self._write(SAMPLES, _lines([sample_line(each, seed=seed) for each in prompts]))
                summary = pairs_summary(prompts, counts)
                rows, entry = ranking_rows(prompts)
                self._write(PAIRS, _lines(rows))
                self._write(INFO, _indented({DATASET: {"file_name": PAIRS, **entry}}))
                self._write(SUMMARY, _indented(summary.as_dict()))
        remove_parts(self.parts)
        return self.summary()

    def _alone(self) -> Any:
        return locked(self.folder / _LOCK, wait=True, key=KEY)

    def _write(self, name: str, text: str) -> None:
        replace_durably(path=self.folder / name, data=text.encode(), key=KEY)


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _indented(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"
