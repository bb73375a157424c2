"""Detection of rows whose response Axolotl 0.19 loses while rendering; 0.21 renders them correctly."""

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
    "Axolotl 0.19 searches the rendered turn for the text of the response, and uses the last character of the turn if "
    "the chat template has trimmed the text (a response that starts or ends with a space or a line break), or a dummy "
    "turn if the response is empty. Strip the responses in the data set, or use Axolotl 0.21 (Python 3.12)."
)


def without_lost_answers(dataset: Dataset, cfg: Any, *, name: str) -> Dataset:
    """Drop rows that would train on a remainder of the chat template in place of a response, and log their numbers.

    Args:
        dataset: rendered pairs, with ``chosen`` and ``rejected``.
        cfg: Axolotl's config; data sets of other types than conversations are returned unchanged.
        name: name of the data set in the log.

    Returns:
        The data set without these rows; the same object if there are none.

    Raises:
        SepoError: If no row is left.
    """
    if not all(is_conversation(item.get("type")) for item in [*(cfg.datasets or []), *(cfg.test_datasets or [])]):
        return dataset
    lost = []
    for start in range(0, len(dataset), 1000):
        rows = dataset[start : start + 1000]
        both = zip(rows["chosen"], rows["rejected"], strict=True)
        lost += [start + index for index, responses in enumerate(both) if any(map(_is_lost, responses))]
    if not lost:
        return dataset
    if len(lost) == len(dataset):
        raise SepoError(f"{name}: every row has lost a response. {_WHY}")
    shown = ", ".join(map(str, lost[:5])) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
    logger.warning(
        "skipped %d of %d rows of %s, which have lost a response (rows %s). %s",
        len(lost),
        len(dataset),
        name,
        shown,
        _WHY,
    )
    return dataset.select(np.delete(np.arange(len(dataset)), lost))


def _is_lost(response: Any) -> bool:
    return isinstance(response, str) and (_DUMMY in response or (len(response) <= 1 and not response.isalnum()))
