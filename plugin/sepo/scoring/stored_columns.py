"""Stored scores of a run's data sets: find the store by content, compute missing rows, join the columns to the rows."""

from __future__ import annotations

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset, concatenate_datasets
from tqdm import tqdm

from sepo.errors import SepoError
from sepo.forward.sequences import ScoredSequence
from sepo.recipe.model_specs import ModelSpec
from sepo.recipe.settings import RunSettings
from sepo.score_store import ScoreStore, ShardRange, content_key, default_store_root, write_names
from sepo.score_store.fingerprint import model_fingerprint
from sepo.scoring.hub import HubAccess
from sepo.scoring.hub_files import Need
from sepo.scoring.model_files import spec_files
from sepo.scoring.models import give_memory_back, precision
from sepo.scoring.row_texts import RowTexts, write_texts
from sepo.selection import SIDES
from sepo.training.trainable_rows import list_arrays, response_start

logger = logging.getLogger(__name__)

_BLOCK = 1000
"""Rows of a mapped file that are read at a time."""


def rows_digest(dataset: Dataset) -> str:
    """Return a digest of every row's token ids and the positions at which its responses start."""
    digest = hashlib.sha256()
    columns = [f"{side}_{name}" for side in SIDES for name in ("input_ids", "labels")]
    arrow = dataset.select_columns(columns).with_format("arrow")
    for start in range(0, len(dataset), _BLOCK):  # without conversion to Python integers
        rows = arrow[start : start + _BLOCK]
        for side in SIDES:
            for ids, labels in zip(
                *(list_arrays(rows[f"{side}_{name}"]) for name in ("input_ids", "labels")), strict=True
            ):
                digest.update(np.asarray([len(ids), response_start(labels)], dtype="<i8").tobytes())
                digest.update(np.asarray(ids, dtype="<i4").tobytes())
    return digest.hexdigest()


def spec_identity(spec: ModelSpec, *, key: str, access: HubAccess, need: Need = "weights") -> dict[str, Any]:
    """Return the identity of a scoring model by content.

    Args:
        spec: the scoring model.
        key: the recipe's key, for the message.
        access: access to the hub.
        need: what is loaded.

    Raises:
        SepoError: If one of its directories is missing.
    """
    model, adapters = spec_files(spec, key=key, access=access, need=need)
    return {
        "model": model_fingerprint(model.folder, model.files),
        "adapters": [model_fingerprint(adapter.folder, adapter.files) for adapter in adapters],
        "quantization_bit": spec.quantization_bit,
    }


def row_sequences(rows: Mapping[str, list[Any]]) -> list[ScoredSequence]:
    """Return the prompts with their responses of some rows: all chosen ones, then all rejected ones."""
    return [
        ScoredSequence(ids, response_start(labels))
        for side in SIDES
        for ids, labels in zip(rows[f"{side}_input_ids"], rows[f"{side}_labels"], strict=True)
    ]


def reader_identity(tokenizer: Any, *, template: Any) -> dict[str, str]:
    """Return what the tokens of a conversation depend on in a tokenizer and a chat template, by content."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    rules = json.dumps(words) if backend is None else backend.to_str()
    return {
        "tokenizer": hashlib.sha256(rules.encode()).hexdigest(),
        "chat_template": hashlib.sha256(json.dumps(template).encode()).hexdigest(),
    }


def host_identity(*, tokenizer: Any, model_args: Any, data_args: Any) -> dict[str, Any]:
    """Return what scores depend on apart from scoring models and rows: tokenizer, template, cutoff, precision."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])))
    return {
        "tokenizer": hashlib.sha256(vocabulary.encode()).hexdigest(),
        "template": data_args.template,
        "cutoff_len": data_args.cutoff_len,
        **precision(model_args),
    }


def _shard_rows(rows: int) -> int:
    """Return the rows per shard, the most that a killed run loses: few on a slow machine, without too many files."""
    return min(512, max(32, rows // 64))


def _any_nonzero(scores: Dataset, columns: Sequence[str]) -> bool:
    """Return whether any value of the rows is not zero; reads no further than to the first block with one."""
    arrow = scores.with_format("arrow")
    for start in range(0, len(scores), _BLOCK):
        rows = arrow[start : start + _BLOCK]
        for column in columns:
            if np.any(rows[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)):
                return True
    return False


def _not_scored(what: str, name: str, where: Path) -> str:
    return f"{what} of {name} are not all in {where}; run `sepo score` with this recipe first."


class StoredScores(ABC):
    """Columns of per-token values for the data sets of one run, computed at most once.

    Models are loaded when the first missing shard is computed, and only then.

    Args:
        settings: the run's settings.
        identity: all that the values depend on except the rows; together with the rows' digest it identifies the store.
        row_texts: returns the texts of rows in the tokens that the values belong to.
        training_args: the host's training arguments (device, ranks).
    """

    columns: ClassVar[tuple[str, ...]]
    what: ClassVar[str]

    def __init__(
        self, settings: RunSettings, *, identity: dict[str, Any], row_texts: RowTexts, training_args: Any
    ) -> None:
        self.settings, self.identity, self.training_args = settings, identity, training_args
        self.row_texts = row_texts
        self.stores: dict[str, str] = {}
        self.names: dict[str, str] = {}  # names of the models and the data in the recipe, for `sepo scores ls`
        self.find_only = False
        self.report: Callable[[Any, str], None] = lambda bar, output_dir: None  # the host's progress display
        self._scorer: Any = None

    def attach(self, dataset: Dataset, *, name: str) -> Dataset:
        """Compute the columns of a data set, or find their store, and join them to its rows.

        Raises:
            SepoError: If the values of all rows are zero, so that the scoring models must be wrong, the store cannot
                be written, or ``find_only`` is set and the values are not stored.
        """
        root = (
            Path(self.settings.token_scores_dir).expanduser()
            if self.settings.token_scores_dir
            else default_store_root()
        )
        identity = {**self.identity, "rows": self._digest(dataset)}
        if self.find_only and not (root / content_key(identity)).is_dir():
            raise SepoError(_not_scored(self.what, name, root))
        store = ScoreStore.open(
            root=root,
            identity=identity,
            rows=len(dataset),
            columns=self.columns,
            shard_rows=_shard_rows(len(dataset)),
        )
        self.stores[name] = str(store.path)
        if self.training_args.process_index == 0:
            write_names(root, store.key, {**self.names, "part": name})
        if store.complete:
            logger.info("%s of %s found in %s: nothing to score.", self.what, name, store.path)
        elif self.find_only:
            raise SepoError(_not_scored(self.what, name, store.path))
        else:
            self._fill(store, dataset, name=name)
        scores = concatenate_datasets([Dataset.from_file(str(path)) for path in store.files()])
        if not _any_nonzero(scores, self.columns):
            self._refuse_zeros(name)
        if self.training_args.process_index == 0 and not self.find_only:
            write_texts(store, dataset, self.row_texts)
        leftover = [column for column in self.columns if column in dataset.column_names]  # from a tokenized_path
        return concatenate_datasets([dataset.remove_columns(leftover), scores], axis=1)

    def _fill(self, store: ScoreStore, dataset: Dataset, *, name: str) -> None:
        missing = sum(shard.rows for shard in store.missing())
        logger.info("scoring %s: %d of %d rows missing in %s.", name, missing, len(dataset), store.path)
        ranks, rank = self.training_args.world_size, self.training_args.process_index
        with tqdm(
            total=len(dataset), initial=len(dataset) - missing, desc=f"scoring {name}", unit="pair", disable=rank != 0
        ) as bar:

            def settled(shard: ShardRange, done_rows: int) -> None:
                bar.n = done_rows  # includes shards of other processes
                bar.refresh()
                self.report(bar, self.training_args.output_dir)

            store.fill(
                lambda start, stop: self._score(dataset, start, stop, lambda sequences: bar.update(sequences / 2)),
                offset=rank * len(store.shards) // max(1, ranks),
                on_shard=settled,
            )

    def _digest(self, dataset: Dataset) -> str:
        """Return a digest of the parts of the rows that the values depend on."""
        return rows_digest(dataset)

    @abstractmethod
    def _score(
        self, dataset: Dataset, start: int, stop: int, on_batch: Callable[[int], None]
    ) -> dict[str, list[np.ndarray]]:
        """Return the columns of the rows [start, stop); the first call loads the models."""

    @abstractmethod
    def _refuse_zeros(self, name: str) -> None:
        """Raise a ``SepoError`` because all values of the data set ``name`` are exactly zero."""

    def free(self) -> None:
        """Drop the scoring models and release their memory before the policy is loaded."""
        if self._scorer is None:
            return
        self._scorer = None
        give_memory_back()
