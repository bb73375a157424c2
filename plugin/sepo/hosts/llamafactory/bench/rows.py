"""The measured pairs, and random numbers in place of the scores that a run would compute before training."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import numpy as np
from datasets import Dataset, concatenate_datasets

from sepo.errors import SepoError
from sepo.recipe.settings import RunSettings
from sepo.recipe.token_rewards import CONTRASTIVE
from sepo.selection import SIDES
from sepo.training.float_columns import REF_COLUMNS
from sepo.training.reward_columns import REWARD_COLUMNS
from sepo.training.selection_columns import SCORE_COLUMNS
from sepo.training.trainable_rows import response_start

_STORED = ("oracle", "file", CONTRASTIVE)

Numbers = Callable[[np.random.Generator, int], np.ndarray]

_NUMBERS: dict[tuple[str, str], Numbers] = {
    SCORE_COLUMNS: lambda draw, count: draw.standard_normal(count, dtype=np.float32),
    REWARD_COLUMNS: lambda draw, count: draw.random(count, dtype=np.float32) - np.float32(0.5),
    REF_COLUMNS: lambda draw, count: -draw.standard_exponential(count, dtype=np.float32),
}


def drawn_batches(lengths: Sequence[int], *, pairs: int, rounds: int, seed: int) -> list[list[int]]:
    """Draw the rows of each round's batch, stratified by length.

    The savings of a stage depend on lengths, and a small uniform sample may contain long rows only. The rows are
    therefore sorted by length and divided into as many strata as rows are needed; one row is drawn from each.

    Args:
        lengths: number of tokens of each pair of the data set.
        pairs: number of pairs per batch.
        rounds: number of batches.
        seed: seed of the draw.

    Returns:
        Row indices per batch; no row is repeated before all were drawn, and never within a batch.

    Raises:
        SepoError: the data set has fewer pairs than a batch.
    """
    rows, needed = len(lengths), rounds * pairs
    if rows < pairs:
        raise SepoError(
            f"the data set has {rows} pairs, but a batch has {pairs} (per_device_train_batch_size); use more data or "
            "a smaller batch."
        )
    draw = random.Random(seed)
    if needed <= rows:
        order = sorted(range(rows), key=lambda row: (lengths[row], row))
        edges = [part * rows // needed for part in range(needed + 1)]
        drawn = [order[draw.randrange(start, stop)] for start, stop in itertools.pairwise(edges)]
        draw.shuffle(drawn)
        return [drawn[start : start + pairs] for start in range(0, needed, pairs)]
    batches: list[list[int]] = []
    while len(batches) < rounds:
        order = draw.sample(range(rows), rows)
        batches += [order[start : start + pairs] for start in range(0, rows - pairs + 1, pairs)]
    return batches[:rounds]


def pair_lengths(rows: Dataset) -> list[int]:
    """Return the number of tokens of both sides of each row, prompts included."""
    columns = rows.select_columns([f"{side}_input_ids" for side in SIDES])
    return [sum(len(ids) for ids in row.values()) for row in columns]


def random_columns(settings: RunSettings) -> list[tuple[str, str]]:
    """Return the columns that a run computes or reads before training, and that are random in a benchmark.

    Args:
        settings: settings of a contender.
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
    """Return whether random numbers replace the scores by which tokens are selected or weighed."""
    return settings.method.scorer in _STORED


def _numbers(settings: RunSettings, columns: tuple[str, str]) -> Numbers:
    """Return the distribution of random columns; scores are within the bounds of a token weight that reads them."""
    weight = settings.method.token_weight
    low, high = (-math.inf, math.inf) if weight is None or not weight.reads_scores else weight.score_bounds
    if columns == SCORE_COLUMNS and math.isfinite(low) and math.isfinite(high):
        return lambda draw, count: draw.uniform(low, high, count).astype(np.float32)
    return _NUMBERS[columns]


def with_random_columns(rows: Dataset, settings: RunSettings, *, seed: int) -> Dataset:
    """Add the columns that a method needs besides the tokens, as seeded random numbers of the right shape.

    Args:
        rows: tokenized pairs, in the host's columns.
        settings: settings of a contender.
        seed: seed of the random numbers.

    Returns:
        The rows with the columns of ``random_columns``.
    """
    columns = {}
    draw = np.random.default_rng(seed)
    for pair in random_columns(settings):
        numbers = _numbers(settings, pair)
        for column, side in zip(pair, SIDES, strict=True):
            ids, labels = rows[f"{side}_input_ids"], rows[f"{side}_labels"]
            counts = [len(row) - response_start(label) for row, label in zip(ids, labels, strict=True)]
            columns[column] = [numbers(draw, count) for count in counts]
    if not columns:
        return rows
    leftover = [column for column in columns if column in rows.column_names]
    return concatenate_datasets([rows.remove_columns(leftover), Dataset.from_dict(columns)], axis=1)
