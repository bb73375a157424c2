"""Texts of rows in the tokens that are scored, which a score store keeps next to the scores."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from datasets import Dataset

from sepo.score_store import AnswerText, RowText, ScoreStore
from sepo.selection import SIDES
from sepo.text.conversations import CONVERSATION
from sepo.text.revision_prompts import quoted_conversation
from sepo.text.token_texts import TokenTexts
from sepo.training.selection_columns import IGNORE_INDEX

logger = logging.getLogger(__name__)

_ROWS = 256
_COLUMNS = (CONVERSATION, *(f"{side}_{name}" for side in SIDES for name in ("input_ids", "labels")))

Rows = Mapping[str, list[Any]]
RowTexts = Callable[[Rows], Sequence[RowText]]
"""Function that returns the texts of some rows of a data set, in the tokens that are scored."""


def write_texts(store: ScoreStore, dataset: Dataset, row_texts: RowTexts) -> None:
    """Write the texts of a data set to its store, unless they exist. No run depends on them, so any failure is logged
    as a warning.

    Args:
        store: a complete store.
        dataset: its rows.
        row_texts: returns the texts of some rows.
    """

    def batches() -> Iterator[Sequence[RowText]]:
        read = dataset.select_columns([name for name in _COLUMNS if name in dataset.column_names])
        for start in range(0, len(read), _ROWS):
            yield row_texts(read[start : start + _ROWS])

    try:
        if store.texts.leave(batches):
            logger.info("wrote the texts of the rows next to their scores in %s, for `sepo show`.", store.path)
    except Exception as error:  # of any tokenizer or file system: a run must not fail for a file that is only displayed
        logger.warning(
            "the texts of %s are not stored (%s); the scores are stored, and the run continues.", store.path, error
        )


class PolicyTokens:
    """Texts of rows in the policy's tokens.

    Args:
        tokenizer: the policy's tokenizer.
        quoted: whether prompts are taken from the rows' conversations; otherwise they are decoded from the token ids.
    """

    def __init__(self, tokenizer: Any, *, quoted: bool = False) -> None:
        self.tokenizer, self.quoted = tokenizer, quoted
        self._texts: TokenTexts | None = None

    def __call__(self, rows: Rows) -> list[RowText]:
        """Return the texts of some rows."""
        if self._texts is None:
            self._texts = TokenTexts(self.tokenizer)
        texts = self._texts
        responses = [
            [response_text(texts, labels[labels.count(IGNORE_INDEX) :]) for labels in rows[name]]
            for name in (f"{side}_labels" for side in SIDES)
        ]
        if self.quoted:
            prompts = [prompt_of(json.loads(text)) for text in rows[CONVERSATION]]
        else:
            both = zip(rows["chosen_input_ids"], rows["chosen_labels"], strict=True)
            prompts = [texts.plain(ids[: labels.count(IGNORE_INDEX)]) for ids, labels in both]
        return [RowText(*row) for row in zip(prompts, *responses, strict=True)]


def response_text(texts: TokenTexts, ids: Sequence[int]) -> AnswerText:
    """Return the texts of a response's tokens, end of turn included."""
    return AnswerText(*texts.spelling_and_steps(ids))


def prompt_of(conversation: Mapping[str, Any]) -> str:
    """Return the turns of a row's conversation before the responses, as plain text."""
    turns, system, tools = (conversation[name] for name in ("messages", "system", "tools"))
    return quoted_conversation(turns, system=system, tools=tools)
