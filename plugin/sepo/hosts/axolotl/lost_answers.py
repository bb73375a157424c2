"""Rows whose answer Axolotl 0.19 loses while it renders them; 0.21 renders them right."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from datasets import Dataset

from sepo.errors import SepoError
from sepo.hosts.axolotl.conversations import is_conversation

logger = logging.getLogger(__name__)

_DUMMY = "[[dummy_message]]"
_WHY = (
    "Axolotl 0.19 looks for an answer's text in its rendered turn, and takes the turn's last character where the chat "
    "template has trimmed it (an answer that begins or ends with a space or a line break), or a turn of its own making "
    "where the answer is empty. Strip the answers in the data set, or take Axolotl 0.21 (Python 3.12)."
)


def without_lost_answers(dataset: Dataset, cfg: Any, *, name: str) -> Dataset:
    """Drop rows that would train on a rest of the chat template in place of an answer, and say which.

    Args:
        dataset: rendered pairs, with ``chosen`` and ``rejected``.
        cfg: Axolotl's config; rows of other types than conversations are left alone.
        name: what the log calls the data set.

    Returns:
        The data set without these rows; itself if there are none.

    Raises:
        SepoError: no row is left.
    """
    if not all(is_conversation(item.get("type")) for item in [*(cfg.datasets or []), *(cfg.test_datasets or [])]):
        return dataset
    lost = []
    for start in range(0, len(dataset), 1000):
        rows = dataset[start : start + 1000]
        both = zip(rows["chosen"], rows["rejected"], strict=True)
        lost += [start + index for index, answers in enumerate(both) if any(map(_is_lost, answers))]
    if not lost:
        return dataset
    if len(lost) == len(dataset):
        raise SepoError(f"{name}: every row has lost an answer. {_WHY}")
    shown = ", ".join(map(str, lost[:5])) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
    logger.warning(
        "skipped %d of %d rows of %s, which have lost an answer (rows %s). %s",
        len(lost),
        len(dataset),
        name,
        shown,
        _WHY,
    )
    return dataset.select(np.delete(np.arange(len(dataset)), lost))


def _is_lost(answer: Any) -> bool:
    return isinstance(answer, str) and (_DUMMY in answer or (len(answer) <= 1 and not answer.isalnum()))
