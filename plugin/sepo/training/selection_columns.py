"""Collators that add the selection by stored scores, or step numbers, to the host's padded batch.

The batch carries the selection instead of the scores: an engine may cast every floating-point input of a batch to its
own dtype (DeepSpeed does), and scores rounded to bfloat16 would select other tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sepo.errors import SepoError
from sepo.objectives import Method, select

SELECTION = "selection"
"""Batch key: bool, [2B, T], True where the token at that position is optimized."""

CANDIDATES = "candidates"
"""Batch key: bool, [2B, T], True where a token may be selected; absent if every response token may."""

STEPS = "steps"
"""Batch key: int64, [2B, T], the number of the step (line, sentence) that the token at that position belongs to."""

IGNORE_INDEX = -100

SCORE_COLUMNS = ("chosen_scores", "rejected_scores")
"""Row columns: the score of each response token that can be scored."""

COUNT_COLUMNS = ("chosen_counts", "rejected_counts")
"""Row columns: the number of tokens of the response that the data set's threshold keeps."""

CANDIDATE_COLUMNS = ("chosen_candidates", "rejected_candidates")
"""Row columns: whether each response token may be selected. Without them, all may; tokens that the chat template writes
around the text of a response may not (``sepo.text.template_tokens``)."""

STEP_COLUMNS = ("chosen_steps", "rejected_steps")
"""Row columns: the number of each response token's step."""


def scorable_tokens(batch: Mapping[str, Any]) -> Tensor:
    """Return the positions of response tokens that can be scored, bool of the shape of the labels, [2B, T].

    A token without a predecessor has no log-probability: the first of a row, also after padding on the left.

    Args:
        batch: ``labels`` [2B, T], -100 except at response tokens, and ``attention_mask`` [2B, T], if there is padding.
    """
    scorable: Tensor = batch["labels"] != IGNORE_INDEX
    scorable[:, 0] = False
    mask = batch.get("attention_mask")
    if mask is not None and mask.shape == scorable.shape:
        scorable[:, 1:] &= mask[:, :-1] != 0
    return scorable


def at_tokens(rows: Sequence[Any], scorable: Tensor, *, dtype: torch.dtype, what: str, advice: str) -> Tensor:
    """Scatter rows of one number per response token to the positions of their tokens.

    Args:
        rows: 2B sequences of numbers, those of the chosen responses first.
        scorable: [2B, T], from ``scorable_tokens``.
        dtype: dtype of the result.
        what: name of the numbers in error messages.
        advice: what to do, for error messages.

    Returns:
        [2B, T], 0 except at response tokens.

    Raises:
        SepoError: if a row's length is not its number of scorable response tokens.
    """
    placed = torch.zeros(scorable.shape, dtype=dtype)
    for index, row in enumerate(rows):
        count = int(scorable[index].sum())
        if len(row) != count:
            side = "chosen" if index < len(rows) // 2 else "rejected"
            raise SepoError(
                f"{len(row)} {what} for a {side} response of {count} tokens: the {what} belong to other data. {advice}"
            )
        placed[index, scorable[index]] = torch.as_tensor(row, dtype=dtype)
    return placed


STORE_ADVICE = "Delete the store named in the log, or point token_scores_dir elsewhere."


def step_numbers(features: Sequence[Mapping[str, Any]], scorable: Tensor) -> Tensor:
    """Scatter the rows' step numbers to the positions of their tokens, int64 [2B, T], 0 elsewhere.

    Raises:
        SepoError: if a row's number of steps is not its number of scorable response tokens.
    """
    rows = [feature[column] for column in STEP_COLUMNS for feature in features]
    advice = "Compute the step numbers again (sepo.text.token_texts)."
    return at_tokens(rows, scorable, dtype=torch.int64, what="step numbers", advice=advice)


def add_candidates(batch: dict[str, Any], features: Sequence[Mapping[str, Any]]) -> Tensor:
    """Add the tokens that may be selected to a batch, if its rows have their columns.

    Args:
        batch: ``labels`` [2B, T]; gets ``CANDIDATES``.
        features: the B rows.

    Returns:
        The tokens that may be selected, bool [2B, T].

    Raises:
        SepoError: if a row's number of flags is not its number of scorable response tokens.
    """
    scorable = scorable_tokens(batch)
    if CANDIDATE_COLUMNS[0] not in features[0]:
        return scorable
    rows = [feature[column] for column in CANDIDATE_COLUMNS for feature in features]
    advice = "Compute them again from the token ids (sepo.text.template_tokens)."
    batch[CANDIDATES] = at_tokens(rows, scorable, dtype=torch.bool, what="candidate flags", advice=advice)
    return batch[CANDIDATES]


class CandidateCollator:
    """Collator that adds the tokens that may be selected to the host's batch, for live scorers.

    Args:
        inner: the host's collator, as in ``SelectionCollator``.
    """

    def __init__(self, inner: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]) -> None:
        self.inner = inner

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows; for errors see ``add_candidates``."""
        batch = self.inner(features)
        add_candidates(batch, features)
        return batch


class StepCollator:
    """Collator that adds the rows' step numbers to the batch of the host's pairwise collator, for live scorers.

    Args:
        inner: the host's collator, as in ``SelectionCollator``.
    """

    def __init__(self, inner: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]) -> None:
        self.inner = inner

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows; for errors see ``step_numbers``."""
        batch = self.inner(features)
        batch[STEPS] = step_numbers(features, scorable_tokens(batch))
        return batch


class SelectionCollator:
    """Collator that adds the selection by stored scores to the batch of the host's pairwise collator.

    >>> from sepo.objectives import resolve_method
    >>> def pad(rows):  # a host's collator: chosen rows first, then rejected ones, padded on the right
    ...     labels = [r["chosen_labels"] for r in rows] + [r["rejected_labels"] for r in rows]
    ...     width = max(map(len, labels))
    ...     return {"labels": torch.tensor([x + [-100] * (width - len(x)) for x in labels])}
    >>> row = {"chosen_labels": [-100, 5, 6], "rejected_labels": [-100, 7],
    ...        "chosen_scores": [0.5, -0.25], "rejected_scores": [1.0]}
    >>> SelectionCollator(pad, method=resolve_method("sepo", chosen_ratio=0.5))([row])["selection"]
    tensor([[False,  True, False],
            [False,  True, False]])

    Args:
        inner: the host's collator; its ``labels`` are [2B, T], the first B rows chosen, -100 except at response
            tokens.
        method: a resolved method that selects by stored scores.

    Rows may also have ``CANDIDATE_COLUMNS``, the tokens among which is selected.
    """

    def __init__(self, inner: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]], *, method: Method) -> None:
        self.inner = inner
        self.method = method

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows.

        Raises:
            SepoError: if a row's number of scores is not its number of scorable response tokens.
        """
        batch = self.inner(features)
        scorable, candidates = scorable_tokens(batch), add_candidates(batch, features)
        rows = [feature[column] for column in SCORE_COLUMNS for feature in features]
        scores = at_tokens(rows, scorable, dtype=torch.float32, what="scores", advice=STORE_ADVICE)
        pairs = len(features)
        more: dict[str, Tensor] = {}
        if self.method.needs_steps:
            steps = step_numbers(features, scorable)
            more |= {"chosen_steps": steps[:pairs], "rejected_steps": steps[pairs:]}
        if self.method.needs_counts:
            more |= {name: torch.tensor([row[name] for row in features]) for name in COUNT_COLUMNS}
        chosen, rejected = select(
            self.method,
            chosen_mask=candidates[:pairs],
            rejected_mask=candidates[pairs:],
            chosen_scores=scores[:pairs],
            rejected_scores=scores[pairs:],
            **more,
        )
        batch[SELECTION] = torch.cat([chosen, rejected])
        return batch
