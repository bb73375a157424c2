"""What rows say, in the tokens that their scores are of: what a score store keeps beside its numbers."""

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
"""Some rows of a data set, as the store's scores read them."""


def leave_texts(store: ScoreStore, dataset: Dataset, say: RowTexts) -> None:
    """Leave a data set's texts in its store, where they are not there yet. Nothing depends on them: what hinders it is
    a warning.

    Args:
        store: a complete one.
        dataset: its rows.
        say: gives the texts of some rows.
    """

    def batches() -> Iterator[Sequence[RowText]]:
        read = dataset.select_columns([name for name in _COLUMNS if name in dataset.column_names])
        for start in range(0, len(read), _ROWS):
            yield say(read[start : start + _ROWS])

    try:
        if store.texts.leave(batches):
            logger.info("left the rows' texts beside their scores in %s, for `sepo show`.", store.path)
    except Exception as error:  # any tokenizer's, any disk's: a run does not end because it cannot be looked at
        logger.warning("the texts of %s are not stored (%s); the scores are, and the run goes on.", store.path, error)


class PolicyTokens:
    """Texts of rows in the policy's own tokens.

    Args:
        tokenizer: the policy's.
        quoted: whether prompts are the rows' conversations; otherwise they are decoded from the row's tokens.
    """

    def __init__(self, tokenizer: Any, *, quoted: bool = False) -> None:
        self.tokenizer, self.quoted = tokenizer, quoted
        self._texts: TokenTexts | None = None

    def __call__(self, rows: Rows) -> list[RowText]:
        """The texts of some rows."""
        if self._texts is None:
            self._texts = TokenTexts(self.tokenizer)
        texts = self._texts
        answers = [
            [answer_text(texts, labels[labels.count(IGNORE_INDEX) :]) for labels in rows[name]]
            for name in (f"{side}_labels" for side in SIDES)
        ]
        if self.quoted:
            prompts = [prompt_of(json.loads(text)) for text in rows[CONVERSATION]]
        else:
            both = zip(rows["chosen_input_ids"], rows["chosen_labels"], strict=True)
            prompts = [texts.plain(ids[: labels.count(IGNORE_INDEX)]) for ids, labels in both]
        return [RowText(*row) for row in zip(prompts, *answers, strict=True)]


def answer_text(texts: TokenTexts, ids: Sequence[int]) -> AnswerText:
    """An answer's tokens, its end of turn included."""
    return AnswerText(*texts.spelling_and_steps(ids))


def prompt_of(conversation: Mapping[str, Any]) -> str:
    """The turns before the answers of a row's conversation."""
    turns, system, tools = (conversation[name] for name in ("messages", "system", "tools"))
    return quoted_conversation(turns, system=system, tools=tools)
