"""Scores of a run, or of a store, against noise: read from the stored columns, without a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from sepo.objectives import Method, available_scorers
from sepo.objectives.presets import find_scorer
from sepo.score_store import ScoreStore
from sepo.score_store.chance import Chance, against_chance, sampled_rows
from sepo.training.reward_columns import REWARD_COLUMNS
from sepo.training.selection_columns import CANDIDATE_COLUMNS, SCORE_COLUMNS
from sepo.training.trainable_rows import each_dataset, list_arrays

logger = logging.getLogger(__name__)

ADVICE = (
    "the selected tokens are no better than random ones. Train the oracle on more pairs, longer or as another kind, or "
    "use another token_scorer, and measure it with sepo credit (docs/scores.md#scores-against-noise)"
)
"""What scores like noise mean, and what to do."""


def scores_against_chance(datasets: Mapping[str, Any], method: Method) -> dict[str, Chance]:
    """Compare the stored scores, or else the token rewards, of a run's rows with noise.

    Args:
        datasets: tokenized data sets by the host's roles, with the columns of the run's scores.
        method: the resolved method.

    Returns:
        Comparisons by data set; without those that have no such columns. Empty for random scores, and for a scorer
        whose highest scores are selected in both responses: its scores are not on one scale.
    """
    found: dict[str, Chance] = {}

    def compare(dataset: Dataset, name: str) -> Dataset:
        chance = _of_rows(dataset, method)
        if chance is not None:
            found[name] = chance
        return dataset

    if method.scorer != "random":
        each_dataset(datasets, compare)
    return found


def log_chance(found: Mapping[str, Chance]) -> None:
    """Log the comparison of each data set with noise, and a warning for scores that cannot be told from it."""
    for name, chance in found.items():
        if chance.is_noise:
            logger.warning("the scores of %s cannot be told from noise: %s; %s.", name, chance.text(), ADVICE)
        else:
            logger.info("the scores of %s against noise: %s.", name, chance.text())


def _of_rows(dataset: Dataset, method: Method) -> Chance | None:
    scored = set(SCORE_COLUMNS) <= set(dataset.column_names)
    if scored and method.token_scorer.rejected_largest:
        return None
    columns = SCORE_COLUMNS if scored else REWARD_COLUMNS
    if not set(columns) <= set(dataset.column_names):
        return None
    flags = [name for name in CANDIDATE_COLUMNS if name in dataset.column_names]
    rows = dataset.select_columns([*columns, *flags]).select(sampled_rows(len(dataset))).with_format("arrow")[:]
    sides = [list_arrays(rows[column]) for column in columns]
    if flags:
        kept = [list_arrays(rows[name]) for name in flags]
        sides = [
            [scores[mask.astype(bool)] for scores, mask in zip(side, masks, strict=True)]
            for side, masks in zip(sides, kept, strict=True)
        ]
    return against_chance(*sides)


def store_chance(store: ScoreStore) -> Chance | None:
    """Compare the scores of a complete store with noise.

    Args:
        store: a store with all shards present.

    Returns:
        The comparison; None for log-probabilities of a reference, and for a registered scorer whose highest scores are
        selected in both responses.

    Raises:
        SepoError: If a shard is missing or damaged.
    """
    columns = store.manifest.columns
    if tuple(columns) not in (SCORE_COLUMNS, REWARD_COLUMNS):
        return None
    scorer = str(store.manifest.identity.get("scorer", ""))
    if scorer in available_scorers() and find_scorer(scorer).rejected_largest:
        return None
    table = store.table()
    sampled = table.take(pa.array(sampled_rows(table.num_rows), pa.int64()))
    return against_chance(*([np.asarray(row) for row in sampled.column(name).to_pylist()] for name in columns))
