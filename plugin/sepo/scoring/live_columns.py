"""Columns that a selection needs in addition to the tokens: random scores, step numbers, per-row token budgets."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor

from sepo.errors import SepoError
from sepo.objectives import Method, RowTokens, TokenScorer
from sepo.recipe.token_rewards import CONTRASTIVE
from sepo.scoring.custom_results import scores_of_row
from sepo.scoring.weight_checks import check_weights
from sepo.selection import SIDES
from sepo.selection.scores import random_scores
from sepo.selection.threshold import Threshold, dataset_threshold
from sepo.text.template_tokens import NO_TEMPLATE, TemplateTokens, before_text
from sepo.text.token_texts import TokenTexts
from sepo.training.reward_columns import REWARD_COLUMNS
from sepo.training.selection_columns import CANDIDATE_COLUMNS, COUNT_COLUMNS, SCORE_COLUMNS, STEP_COLUMNS
from sepo.training.trainable_rows import candidate_flags, each_dataset, list_arrays, response_start

logger = logging.getLogger(__name__)

_ROWS = 1000

Rows = Mapping[str, list[Any]]


def selection_columns(
    datasets: Mapping[str, Any],
    method: Method,
    *,
    tokenizer: Any,
    seed: int,
    template: TemplateTokens = NO_TEMPLATE,
) -> dict[str, Any]:
    """Add the columns that the method's selection reads, apart from stored scores.

    Args:
        datasets: the host's tokenized data sets by role; the evaluation role may hold a dict of data sets.
        method: the resolved method.
        tokenizer: the policy's tokenizer.
        seed: the run's seed, for random scores.
        template: the tokens that the host's chat template writes into responses, which are not selected.

    Returns:
        The data sets with ``*_scores`` (``random``, ``contrastive``, and scorers with ``from_row``), ``*_steps`` (unit
        ``step``), ``*_candidates`` (if the template writes tokens) and ``*_counts`` (scope ``dataset``: by the
        threshold of the training set, if there is one). The same objects if nothing is needed.

    Raises:
        SepoError: If the scores of ``token_scorer: file`` are missing, a registered scorer's do not fit the row, or
            the token weights of a row are refused (``check_weights``).
    """
    scorer = method.token_scorer
    texts = TokenTexts(tokenizer) if method.needs_steps or scorer.from_row else None

    def prepared(dataset: Dataset, name: str) -> Dataset:
        if method.scorer == CONTRASTIVE:  # the same values under another name, not copied
            rewards = dict(zip(REWARD_COLUMNS, SCORE_COLUMNS, strict=True))
            scores = dataset.select_columns(list(rewards)).rename_columns(rewards)
            dataset = concatenate_datasets([dataset, scores], axis=1)
        if method.scorer == "random":
            dataset = mapped(dataset, lambda rows: _random_scores(rows, seed), f"random {seed}")
        if scorer.from_row is not None and texts is not None:
            dataset = mapped(dataset, lambda rows: _row_scores(rows, scorer, texts), f"{scorer.name} scores")
        if method.scorer == "file" and not set(SCORE_COLUMNS) <= set(dataset.column_names):
            raise SepoError(
                f"{name} was tokenized without its scores (found {', '.join(dataset.column_names)}), which "
                "token_scorer: file needs; tokenize it again with this recipe (another tokenized_path)."
            )
        if texts is None or not method.needs_steps:
            return dataset
        return mapped(dataset, lambda rows: step_columns(rows, texts, template), "steps")

    def checked(dataset: Dataset, name: str) -> Dataset:
        check_weights(dataset, method, name=name, tokenizer=tokenizer)
        return dataset

    result = each_dataset(datasets, prepared)
    if template and method.selector is not None:
        result = each_dataset(result, lambda rows, _: _with_candidates(rows, template))
    if method.needs_counts:
        result = _with_counts(result, method)
    refusable = method.weighs_by_scores or (method.token_weight is not None and method.averages)
    if refusable and method.needs_scores and not method.weighs_live:
        each_dataset(result, checked)
    return result


def mapped(dataset: Dataset, function: Callable[[Rows], dict[str, list[Any]]], name: str) -> Dataset:
    """Add columns with ``Dataset.map``, without its cache, which cannot detect changes of this package's code."""
    fingerprint = hashlib.sha256(f"{dataset._fingerprint} sepo {name}".encode()).hexdigest()[:16]
    return dataset.map(
        function,
        batched=True,
        batch_size=_ROWS,
        load_from_cache_file=False,
        new_fingerprint=fingerprint,
        desc=f"sepo: {name.split()[0]}",
    )


def _responses(rows: Rows, side: str) -> Iterator[tuple[list[int], int]]:
    for ids, labels in zip(rows[f"{side}_input_ids"], rows[f"{side}_labels"], strict=True):
        yield ids, response_start(labels)


def _random_scores(rows: Rows, seed: int) -> dict[str, list[Any]]:
    return {
        column: [random_scores(ids, start=start, seed=seed, side=side).numpy() for ids, start in _responses(rows, side)]
        for column, side in zip(SCORE_COLUMNS, SIDES, strict=True)
    }


def _row_scores(rows: Rows, scorer: TokenScorer, texts: TokenTexts) -> dict[str, list[Any]]:
    def scored(ids: list[int], start: int, chosen: bool) -> np.ndarray:
        pieces = tuple(texts.pieces(ids[start:]))
        return scores_of_row(scorer, RowTokens(tuple(ids[:start]), tuple(ids[start:]), pieces, chosen))

    return {
        column: [scored(ids, start, chosen) for ids, start in _responses(rows, side)]
        for column, side, chosen in zip(SCORE_COLUMNS, SIDES, (True, False), strict=True)
    }


def step_columns(rows: Rows, texts: TokenTexts, template: TemplateTokens) -> dict[str, list[Any]]:
    """Return the step numbers of the responses of some rows, as columns ``STEP_COLUMNS``."""
    return {
        column: [
            _steps_of(ids[start:], candidate_flags(labels, template).tolist(), texts)
            for (ids, start), labels in zip(_responses(rows, side), rows[f"{side}_labels"], strict=True)
        ]
        for column, side in zip(STEP_COLUMNS, SIDES, strict=True)
    }


def _steps_of(ids: list[int], candidates: list[bool], texts: TokenTexts) -> list[int]:
    """Return the step numbers of a response: those of its text, not counted from what the template writes before it."""
    before = before_text(candidates)
    return [0] * before + texts.steps(ids[before:])


def _with_candidates(dataset: Dataset, template: TemplateTokens) -> Dataset:
    columns = {}
    for column, side in zip(CANDIDATE_COLUMNS, SIDES, strict=True):
        arrow = dataset.select_columns([f"{side}_labels"]).with_format("arrow")
        blocks = (arrow[start : start + _ROWS].column(0) for start in range(0, len(dataset), _ROWS))
        flags = ([candidate_flags(labels, template) for labels in list_arrays(block)] for block in blocks)
        columns[column] = pa.chunked_array([pa.array(rows, pa.list_(pa.bool_())) for rows in flags])
    return concatenate_datasets([dataset, Dataset(pa.table(columns))], axis=1)


def _with_counts(datasets: dict[str, Any], method: Method) -> dict[str, Any]:
    training = datasets.get("train_dataset")
    shared = None if training is None else _thresholds(training, method, name="train")

    def counted(dataset: Dataset, name: str) -> Dataset:
        thresholds = shared or _thresholds(dataset, method, name=name)
        for column, scores, threshold in zip(COUNT_COLUMNS, SCORE_COLUMNS, thresholds, strict=True):
            pieces = threshold.counts(_pieces(dataset, scores))
            dataset = dataset.add_column(column, torch.cat(list(pieces)).numpy())
        return dataset

    return each_dataset(datasets, counted)


def _thresholds(dataset: Dataset, method: Method, *, name: str) -> tuple[Threshold, Threshold]:
    assert method.selector is not None

    def threshold(column: str, ratio: float, largest: bool) -> Threshold:
        return dataset_threshold(lambda: (flat for flat, _ in _pieces(dataset, column)), ratio=ratio, largest=largest)

    first = threshold(SCORE_COLUMNS[0], method.selector.chosen_ratio, True)
    second = threshold(SCORE_COLUMNS[1], method.selector.rejected_ratio, method.token_scorer.rejected_largest)
    logger.info(
        "thresholds over %s: chosen scores from %.6g %s, rejected scores from %.6g %s.",
        name,
        first.value,
        "up" if first.largest else "down",
        second.value,
        "up" if second.largest else "down",
    )
    return first, second


def _pieces(dataset: Dataset, column: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the scores of the candidates as (flat float32 scores, tokens per row), ``_ROWS`` rows at a time."""
    flags = dict(zip(SCORE_COLUMNS, CANDIDATE_COLUMNS, strict=True))[column]
    limited = flags in dataset.column_names
    arrow = dataset.select_columns([column, *([flags] if limited else [])]).with_format("arrow")
    for start in range(0, len(dataset), _ROWS):
        block = arrow[start : start + _ROWS]
        flat, lengths = _flat(block[column], np.float32)
        if limited:
            kept, _ = _flat(block[flags], np.bool_)
            ends = np.cumsum(lengths)
            counted = np.concatenate([[0], np.cumsum(kept)])
            flat, lengths = flat[kept], counted[ends] - counted[ends - lengths]
        yield torch.from_numpy(flat), torch.from_numpy(lengths)


def _flat(column: Any, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of an Arrow list column, and the number of values per row."""
    lists = column.combine_chunks()
    values = np.array(lists.flatten().to_numpy(zero_copy_only=False), dtype=dtype)
    return values, np.array(lists.value_lengths().to_numpy(zero_copy_only=False), dtype=np.int64)
