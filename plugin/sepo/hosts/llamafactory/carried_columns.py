"""Columns of a data set's rows that the host's converter would drop, carried through it under private names.

See ../PATCHES.md for the name that is rebound.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from datasets import Dataset, Features, concatenate_datasets
from llamafactory.data import loader


@contextlib.contextmanager
def carried_columns(
    columns: Callable[[Dataset, str], Sequence[str]],
    carried: Callable[..., Mapping[str, Any]],
    features: Mapping[str, Any],
    *,
    title: str,
) -> Iterator[None]:
    """Make the host's converter keep columns inside the context.

    Args:
        columns: returns the columns to carry, from a data set as it was loaded and its name; raises ``SepoError`` if it
            lacks them.
        carried: returns the columns of ``features`` for one row, from the host's aligned columns with the carried ones,
            and ``where``, the name of the row in error messages.
        features: types of these columns, whose names begin with an underscore.
        title: text of the progress bar.
    """
    align = loader.align_dataset

    def aligned(dataset: Dataset, dataset_attr: Any, data_args: Any, training_args: Any) -> Dataset:
        names = list(columns(dataset, str(dataset_attr)))
        known = align(dataset, dataset_attr, data_args, training_args)
        joined = concatenate_datasets([known, dataset.select_columns(names)], axis=1)
        return joined.map(
            lambda row, index: carried(row, where=f"row {index} of dataset '{dataset_attr}'"),
            with_indices=True,
            remove_columns=names,
            features=Features({**known.features, **features}),
            load_from_cache_file=False,
            desc=title,
        )

    loader.align_dataset = aligned
    try:
        yield
    finally:
        loader.align_dataset = align
