"""Token weights of stored selections, computed for all rows before the policy is loaded: those a step refuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from sepo.errors import SepoError
from sepo.objectives import Method, weigh
from sepo.objectives.token_weights import WeightError
from sepo.selection import SIDES
from sepo.training.collators import selecting_collator
from sepo.training.float_columns import SCORES, batch_floats
from sepo.training.selection_columns import (
    CANDIDATE_COLUMNS,
    COUNT_COLUMNS,
    IGNORE_INDEX,
    SCORE_COLUMNS,
    SELECTION,
    STEP_COLUMNS,
    scorable_tokens,
)
from sepo.training.trainable_rows import list_arrays

_ROWS = 64
_LABELS = ("chosen_labels", "rejected_labels")


def check_weights(dataset: Dataset, method: Method, *, name: str, tokenizer: Any) -> None:
    """Raise if a training step would refuse the token weights of a row.

    Args:
        dataset: tokenized rows with all columns that the method's selection reads.
        method: a method that weighs tokens and selects them by stored scores.
        name: name of the data set in errors.
        tokenizer: the policy's tokenizer, which decodes the response for the error.

    Raises:
        SepoError: If a weight is not finite, negative in a mean or not defined for its score, or the weights of a
            response in a mean are all 0; with row, response and token.
    """
    collate = selecting_collator(_padded_labels, method=method)
    more = [column for column in (*CANDIDATE_COLUMNS, *STEP_COLUMNS) if column in dataset.column_names]
    counts = [column for column in COUNT_COLUMNS if column in dataset.column_names]
    arrow = dataset.select_columns([*_LABELS, *SCORE_COLUMNS, *more, *counts]).with_format("arrow")
    for start in range(0, len(dataset), _ROWS):
        block = arrow[start : start + _ROWS]
        columns: dict[str, Sequence[Any]] = {
            column: [values.copy() for values in list_arrays(block[column])]  # torch takes writable arrays only
            for column in (*_LABELS, *SCORE_COLUMNS, *more)
        }
        columns |= {column: block[column].to_pylist() for column in counts}
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        _check_batch(collate(rows), method, name=name, first=start, tokenizer=tokenizer)


def _check_batch(batch: Mapping[str, Any], method: Method, *, name: str, first: int, tokenizer: Any) -> None:
    pairs = len(batch["labels"]) // 2
    mask, selection = scorable_tokens(batch), batch[SELECTION]
    read = {"mask": mask, "selection": selection}
    if method.weighs_by_scores:
        read["scores"] = batch_floats(batch, SCORES, missing="the rows have no scores")
    sides = {"chosen": slice(None, pairs), "rejected": slice(pairs, None)}

    def in_row(side: str, row: int, what: str) -> SepoError:
        labels = batch["labels"][sides[side]][row]
        text = tokenizer.decode(labels[labels != IGNORE_INDEX].tolist(), skip_special_tokens=True)
        return SepoError(
            f"row {first + row} of {name}: its {side} response, which starts with {text[:40]!r}, {what}: "
            f"{_advice(method)}."
        )

    inputs = {f"{side}_{part}": tensor[rows] for side, rows in sides.items() for part, tensor in read.items()}
    try:
        weights = weigh(method, **inputs)
    except WeightError as error:
        token = int(mask[sides[error.side]][error.row, : error.position].sum())
        found = f"has the {error.found} at its token {token}, expected {error.expected}"
        raise in_row(error.side, error.row, found) from error
    if not method.averages:
        return
    for side, values in zip(SIDES, weights, strict=True):
        assert values is not None  # the method weighs tokens
        unweighted = inputs[f"{side}_selection"].any(-1) & ~(values != 0).any(-1)
        if bool(unweighted.any()):
            what = f"has token weights that are all 0, expected one above 0, since {method.name} takes their mean"
            raise in_row(side, int(unweighted.nonzero()[0, 0]), what)


def _advice(method: Method) -> str:
    if method.scorer == "file" and method.weighs_by_scores:
        return (
            "correct its chosen_scores and rejected_scores (spans become negative scores of rejected responses), or "
            "remove the row"
        )
    return f"token_scorer is {method.scorer}; use another token_scorer or token_weight, or remove the row"


def _padded_labels(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    labels = [row[column] for column in _LABELS for row in rows]
    padded = torch.full((len(labels), max(map(len, labels))), IGNORE_INDEX)
    for row, values in zip(padded, labels, strict=True):
        row[: len(values)] = torch.from_numpy(values)
    return {"labels": padded}
