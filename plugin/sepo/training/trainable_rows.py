"""The host's tokenized pairs: the data sets of a run, the start of responses, and rows that can be trained on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from sepo.errors import SepoError
from sepo.selection import SIDES
from sepo.training.selection_columns import IGNORE_INDEX

logger = logging.getLogger(__name__)


def each_dataset(datasets: Mapping[str, Any], change: Callable[[Dataset, str], Dataset]) -> dict[str, Any]:
    """Apply a function to every data set of a run.

    Args:
        datasets: by the host's roles (``train_dataset``, ``eval_dataset``); the evaluation data may be a dict of data
            sets.
        change: takes a data set and its name in the log.

    Returns:
        The results, in the same structure.
    """
    result: dict[str, Any] = {}
    for role, dataset in datasets.items():
        name = role.removesuffix("_dataset")
        if isinstance(dataset, dict):
            result[role] = {part: change(rows, f"{name} {part}") for part, rows in dataset.items()}
        else:
            result[role] = change(dataset, name)
    return result


def joined_column(datasets: Mapping[str, Any], others: Mapping[str, Any], column: str) -> dict[str, Any]:
    """Add a column of another run's data sets to those of a run, row by row, if they lack it.

    Args:
        datasets: by the host's roles.
        others: data sets of the same rows, with the column.
        column: name of the column.
    """
    found: dict[str, Dataset] = {}

    def keep(rows: Dataset, name: str) -> Dataset:
        found[name] = rows.select_columns([column])
        return rows

    def join(rows: Dataset, name: str) -> Dataset:
        return rows if column in rows.column_names else concatenate_datasets([rows, found[name]], axis=1)

    each_dataset(others, keep)
    return each_dataset(datasets, join)


def with_lengths(datasets: Mapping[str, Any], training_args: Any) -> dict[str, Any]:
    """Add the column by which the host's sampler groups rows, if it does (``train_sampling_strategy``).

    The sampler itself would read ``input_ids``, which rows of pairs do not have.

    Args:
        datasets: by the host's roles.
        training_args: the host's training arguments.

    Returns:
        The data sets with the number of tokens of each pair's longer response with its prompt.
    """
    if not groups_by_length(training_args):
        return dict(datasets)

    def measured(rows: Dataset, name: str) -> Dataset:
        if training_args.length_column_name in rows.column_names:
            return rows
        arrow = rows.select_columns([f"{side}_input_ids" for side in SIDES]).with_format("arrow")[:]
        sides = [arrow[f"{side}_input_ids"].combine_chunks().value_lengths() for side in SIDES]
        longer = np.maximum(*(lengths.to_numpy(zero_copy_only=False) for lengths in sides))
        return rows.add_column(training_args.length_column_name, longer)

    return each_dataset(datasets, measured)


def groups_by_length(training_args: Any) -> bool:
    """Return whether the sampler groups rows of similar length; transformers 4 has a flag for it."""
    strategy = getattr(training_args, "train_sampling_strategy", None)
    return strategy == "group_by_length" or bool(getattr(training_args, "group_by_length", False))


def list_arrays(column: Any) -> list[np.ndarray]:
    """Return the rows of an Arrow list column."""
    lists = column.combine_chunks()
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    return np.split(flat, np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False))[:-1])


def response_start(labels: Sequence[int] | np.ndarray) -> int:
    """Return the index of the first response token that can be scored, that is, has a predecessor."""
    if isinstance(labels, np.ndarray):
        return max(1, int(np.argmax(labels != IGNORE_INDEX)))
    return max(1, next(index for index, label in enumerate(labels) if label != IGNORE_INDEX))


def skip_empty_responses(dataset: Dataset, *, name: str, tokenizer: Any) -> Dataset:
    """Drop rows with a response of no tokens (empty, or truncated because the prompt fills the cutoff), and log them.

    Args:
        dataset: tokenized pairs, in the host's columns.
        name: name of the data set in the log.
        tokenizer: decodes the prompts of the rows for the log.

    Returns:
        The data set without these rows, or the same object if there are none.

    Raises:
        SepoError: if no row is left.
    """
    empty = []
    for start in range(0, len(dataset), 1000):
        rows = dataset[start : start + 1000]
        for offset, labels in enumerate(zip(rows["chosen_labels"], rows["rejected_labels"], strict=True)):
            if any(not any(label != IGNORE_INDEX for label in side[1:]) for side in labels):
                empty.append(start + offset)
    if not empty:
        return dataset
    shown = ", ".join(f"{row} ({_excerpt(dataset[row], tokenizer)!r})" for row in empty[:5])
    more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
    logger.warning(
        "skipped %d of %d rows of %s: a response has no token after truncation. Rows %s%s. Raise cutoff_len, or remove "
        "them.", len(empty), len(dataset), name, shown, more,
    )  # fmt: skip
    if len(empty) == len(dataset):
        raise SepoError(f"{name}: every row has an empty response after truncation; raise cutoff_len.")
    return dataset.select(np.delete(np.arange(len(dataset)), empty))


def _excerpt(row: Mapping[str, Any], tokenizer: Any) -> str:
    text = " ".join(tokenizer.decode(row["chosen_input_ids"], skip_special_tokens=True).split())
    return text if len(text) <= 60 else "..." + text[-57:]
