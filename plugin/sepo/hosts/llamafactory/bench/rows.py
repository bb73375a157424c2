"""The pairs that are measured, and random numbers in place of what a run would compute before training."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import numpy as np
from datasets import Dataset, concatenate_datasets

from sepo.errors import SepoError
from sepo.recipe.settings import RunSettings
from sepo.recipe.treg_keys import CONTRASTIVE
from sepo.selection import SIDES
from sepo.training.float_columns import REF_COLUMNS
from sepo.training.reward_columns import REWARD_COLUMNS
from sepo.training.selection_columns import SCORE_COLUMNS
from sepo.training.tokenized_pairs import response_start

_STORED = ("oracle", "file", CONTRASTIVE)

Numbers = Callable[[np.random.Generator, int], np.ndarray]

_NUMBERS: dict[tuple[str, str], Numbers] = {
    SCORE_COLUMNS: lambda draw, count: draw.standard_normal(count, dtype=np.float32),
    REWARD_COLUMNS: lambda draw, count: draw.random(count, dtype=np.float32) - np.float32(0.5),
    REF_COLUMNS: lambda draw, count: -draw.standard_exponential(count, dtype=np.float32),
}


def drawn_batches(lengths: Sequence[int], *, pairs: int, rounds: int, seed: int) -> list[list[int]]:
    """Draw the rows of each round's batch, short and long ones as the data set has them.

    Few random rows may all be long: how much a stage saves depends on lengths, so each row is drawn from a part of its
    own of the rows in the order of their lengths.

    Args:
        lengths: tokens of each pair of the data set.
        pairs: of a batch.
        rounds: how many batches.
        seed: of the draw.

    Returns:
        Row numbers: none twice before all were drawn, and never twice in one batch.

    Raises:
        SepoError: the data set has fewer pairs than a batch.
    """
    rows, wanted = len(lengths), rounds * pairs
    if rows < pairs:
        raise SepoError(
            f"the data set has {rows} pairs and a batch is {pairs} (per_device_train_batch_size); take more data, or "
            "a smaller batch."
        )
    draw = random.Random(seed)
    if wanted <= rows:
        order = sorted(range(rows), key=lambda row: (lengths[row], row))
        edges = [part * rows // wanted for part in range(wanted + 1)]
        drawn = [order[draw.randrange(start, stop)] for start, stop in itertools.pairwise(edges)]
        draw.shuffle(drawn)
        return [drawn[start : start + pairs] for start in range(0, wanted, pairs)]
    batches: list[list[int]] = []
    while len(batches) < rounds:
        order = draw.sample(range(rows), rows)
        batches += [order[start : start + pairs] for start in range(0, rows - pairs + 1, pairs)]
    return batches[:rounds]


def pair_lengths(rows: Dataset) -> list[int]:
    """Tokens of both sides of each row, prompts included."""
    columns = rows.select_columns([f"{side}_input_ids" for side in SIDES])
    return [sum(len(ids) for ids in row.values()) for row in columns]


def random_columns(settings: RunSettings) -> list[tuple[str, str]]:
    """The columns that a run computes or reads before training, and that are random here.

    Args:
        settings: a contender's.
    """
    columns = []
    rewards = settings.token_rewards
    if settings.method.scorer in ("oracle", "file") or (rewards is not None and rewards.origin == "oracle"):
        columns.append(SCORE_COLUMNS)
    if settings.method.scorer == CONTRASTIVE or (rewards is not None and rewards.origin == "prompts"):
        columns.append(REWARD_COLUMNS)
    if settings.precomputed_reference is not None:
        columns.append(REF_COLUMNS)
    return columns


def selects_at_random(settings: RunSettings) -> bool:
    """Whether random numbers stand for the scores by which tokens are selected."""
    return settings.method.scorer in _STORED


def with_random_columns(rows: Dataset, settings: RunSettings, *, seed: int) -> Dataset:
    """Join what a method needs beside the tokens, as seeded random numbers of the right shape.

    Args:
        rows: tokenized pairs, in the host's columns.
        settings: a contender's.
        seed: of the numbers.

    Returns:
        The rows with the columns of ``random_columns``.
    """
    columns = {}
    draw = np.random.default_rng(seed)
    for pair in random_columns(settings):
        for column, side in zip(pair, SIDES, strict=True):
            ids, labels = rows[f"{side}_input_ids"], rows[f"{side}_labels"]
            counts = [len(row) - response_start(label) for row, label in zip(ids, labels, strict=True)]
            columns[column] = [_NUMBERS[pair](draw, count) for count in counts]
    if not columns:
        return rows
    leftover = [column for column in columns if column in rows.column_names]
    return concatenate_datasets([rows.remove_columns(leftover), Dataset.from_dict(columns)], axis=1)
