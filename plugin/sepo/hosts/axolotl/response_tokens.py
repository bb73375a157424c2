"""The policy's tokens of a response in Axolotl: their character spans in its text, and the user's scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sepo.errors import SepoError
from sepo.scoring.user_scores import checked_scores, checked_spans, not_counted, not_spelled, scores_of_spans
from sepo.selection import SIDES
from sepo.text.chat_encoding import moved_spans
from sepo.text.conversations import CONVERSATION
from sepo.text.projection import TokenSpans
from sepo.text.token_texts import TokenTexts

_BROKEN = "\ufffd"


class PolicyResponses:
    """Mapping of the policy's tokens to the text of responses.

    Args:
        tokenizer: the policy's tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._texts = TokenTexts(tokenizer)

    def place(self, conversation: Mapping[str, Any], kept: Sequence[int], side: str) -> TokenSpans | None:
        """Map the tokens of a response to its text.

        Args:
            conversation: the row's conversation, with the responses in ``answers``.
            kept: the tokens of the response, whose end Axolotl may have truncated.
            side: ``chosen`` or ``rejected``.

        Returns:
            Their character spans, without an end of turn if it was truncated; None if they do not spell the text.
        """
        text = conversation["answers"][SIDES.index(side)]
        trimmed = text.strip()  # some templates trim it
        for candidate, skipped in ((text, 0), (trimmed, text.find(trimmed))):
            spans = self._texts.spans(kept, candidate) or self._cut(kept, candidate)
            if spans is not None:
                return moved_spans(spans, skipped, len(candidate), len(text))
        return None

    def _cut(self, kept: Sequence[int], text: str) -> TokenSpans | None:
        """Return the spans of the tokens of a truncated response, which may end inside a character."""
        prefix = self._texts.spelled(kept).rstrip(_BROKEN)
        offsets = self._texts.offsets(kept, prefix) if prefix and text.startswith(prefix) else None
        return None if offsets is None else TokenSpans(tuple(offsets))


class UserScores:
    """``token_scorer: file``: scores or spans of the rows, as one score per token.

    Args:
        columns: the two columns that hold them, from ``score_columns``.
        tokenizer: the policy's tokenizer.
        name: name of the data set in errors.
    """

    def __init__(self, columns: Sequence[str], *, tokenizer: Any, name: str) -> None:
        self._spans = columns[0].endswith("_spans")
        self._tokenizer, self._name = tokenizer, name
        self._responses = PolicyResponses(tokenizer)

    def of(self, row: Mapping[str, Any], side: str, response: Sequence[int]) -> list[float]:
        """Return one score per token of a response.

        Args:
            row: the row, with the user's columns and, for spans, the conversation.
            side: ``chosen`` or ``rejected``.
            response: its tokens, not truncated.

        Raises:
            SepoError: If the scores or spans of the row do not fit its response.
        """
        start = self._tokenizer.decode(list(response[:12]))
        where = f"the row of {self._name} whose {side} response starts with {start!r}"
        if not self._spans:
            scores = checked_scores(row, side, where=where)
            if len(scores) != len(response):
                raise not_counted(where, side, found=len(scores), expected=len(response))
            return scores
        if not row.get(CONVERSATION):
            raise SepoError(
                f"{where} has spans, which refer to characters of the response, and only data sets of type "
                "chat_template.default and chat_template.argilla_chat preserve its text; use one of them, or give "
                "per-token chosen_scores and rejected_scores."
            )
        conversation = json.loads(row[CONVERSATION])
        spans = checked_spans(row, side, where=where, characters=len(conversation["answers"][SIDES.index(side)]))
        placed = self._responses.place(conversation, response, side)
        if placed is None:
            raise not_spelled(where, side)
        return scores_of_spans(placed, spans, side)
