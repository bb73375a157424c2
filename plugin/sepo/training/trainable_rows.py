"""The host's tokenized pairs: the data sets of a run, the start of responses, and rows that can be trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from sepo.errors import SepoError
from sepo.selection import SIDES
from sepo.text.template_tokens import NO_TEMPLATE, TemplateTokens
from sepo.training.row_losses import RowLosses
from sepo.training.selection_columns import IGNORE_INDEX


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


NO_RESPONSE = "a response has no token after truncation; raise cutoff_len (sequence_len), or remove the rows"
NO_CANDIDATE = (
    "only tokens of the chat template are left of a response after truncation; raise cutoff_len (sequence_len)"
)
SAME_RESPONSES = "both responses have the same tokens"


def keep_trainable(
    dataset: Dataset, *, name: str, tokenizer: Any, losses: RowLosses, template: TemplateTokens = NO_TEMPLATE
) -> Dataset:
    """Drop the pairs that no preference can be learned from, and count them.

    These are rows with a response of no tokens (empty, or truncated because the prompt fills the cutoff) or of none
    that may be selected, and rows whose responses have the same tokens.

    Args:
        dataset: tokenized pairs, in the host's columns.
        name: name of the data set in the log.
        tokenizer: decodes examples of the rows.
        losses: gets the numbers of these rows and of those that remain.
        template: tokens that may not be selected, if the method selects.

    Returns:
        The data set without these rows, or the same object if there are none.

    Raises:
        SepoError: if no row is left.
    """
    found: dict[str, list[int]] = {NO_RESPONSE: [], NO_CANDIDATE: [], SAME_RESPONSES: []}
    arrow = dataset.select_columns([f"{side}_labels" for side in SIDES]).with_format("arrow")
    for start in range(0, len(dataset), 1000):
        rows = arrow[start : start + 1000]
        both = zip(*(list_arrays(rows[f"{side}_labels"]) for side in SIDES), strict=True)
        for index, labels in enumerate(both):
            chosen, rejected = map(_response, labels)
            if not len(chosen) or not len(rejected):
                found[NO_RESPONSE].append(start + index)
            elif template and not all(_has_candidate(side, template) for side in labels):
                found[NO_CANDIDATE].append(start + index)
            elif np.array_equal(chosen, rejected):
                found[SAME_RESPONSES].append(start + index)
    for reason, left_out in found.items():
        if left_out:
            losses.add(name, "skipped", reason, len(left_out), example=_text(dataset[left_out[0]], tokenizer))
    left_out = sorted(row for rows in found.values() for row in rows)
    losses.used(name, len(dataset) - len(left_out))
    if len(left_out) == len(dataset):
        reasons = [f"in {len(rows)} of {len(dataset)} rows {reason}" for reason, rows in found.items() if rows]
        raise SepoError(f"{name}: no row is left to train on: {'. '.join(reasons) or 'the data set is empty'}.")
    return dataset.select(np.delete(np.arange(len(dataset)), left_out)) if left_out else dataset


def _response(labels: np.ndarray) -> np.ndarray:
    """Return the tokens of a response that have a predecessor."""
    return labels[1:][labels[1:] != IGNORE_INDEX]


def candidate_flags(labels: Sequence[int] | np.ndarray, template: TemplateTokens) -> np.ndarray:
    """Return for each response token that can be scored whether it may be selected, bool [tokens].

    Args:
        labels: a row's labels, -100 except at the tokens of its response.
        template: the tokens that may not.
    """
    row = np.asarray(labels)
    response = row[row != IGNORE_INDEX]
    flags = np.ones(len(response), dtype=bool)
    flags[template.excluded(response)] = False
    return flags[0 if row[0] == IGNORE_INDEX else 1 :]


def _has_candidate(labels: np.ndarray, template: TemplateTokens) -> bool:
    return int((labels != IGNORE_INDEX).sum()) > template.most or bool(candidate_flags(labels, template).any())


def _text(row: Mapping[str, Any], tokenizer: Any) -> str:
    return str(tokenizer.decode(row["chosen_input_ids"], skip_special_tokens=True))
