"""The host's pairwise processor with additional columns for each row, and its use by the host's ``get_dataset``.

See ../PATCHES.md for the name that is rebound.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llamafactory.data import loader
from llamafactory.data.processor import PairwiseDatasetProcessor

from sepo import __version__


@dataclass
class RowProcessor(PairwiseDatasetProcessor):
    """The host's pairwise processor, applied row by row, since it drops rows; a subclass adds columns.

    Subclasses can be combined (``processed_by``): each adds to the columns of the next one.
    """

    sepo_version: str = __version__  # part of the fingerprint by which the host's cache is found

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Tokenize a batch of aligned rows as the host does, and add the columns of ``more_columns``."""
        columns: dict[str, list[Any]] = defaultdict(list)
        for index in range(len(examples["_prompt"])):
            row = {name: values[index] for name, values in examples.items()}
            made = super().preprocess_dataset({name: [value] for name, value in row.items()})
            if not made.get("chosen_input_ids"):  # the host drops invalid rows
                continue
            for name, values in made.items():
                columns[name] += values
            for name, value in self.more_columns(row, {name: values[0] for name, values in made.items()}).items():
                columns[name].append(value)
        return columns

    def more_columns(self, row: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
        """Return the additional columns of one row.

        Args:
            row: the host's aligned columns, and those that were carried through its converter.
            made: the columns that the host made of it.
        """
        return {}


@contextlib.contextmanager
def processed_by(kind: type[RowProcessor]) -> Iterator[None]:
    """Make the host's ``get_dataset`` tokenize pairs with a processor inside the context.

    Args:
        kind: the processor; inside another such context, a processor that does what both do.
    """
    before = loader.PairwiseDatasetProcessor
    loader.PairwiseDatasetProcessor = (
        kind if before is PairwiseDatasetProcessor else type(kind.__name__, (kind, before), {})
    )
    try:
        yield
    finally:
        loader.PairwiseDatasetProcessor = before
