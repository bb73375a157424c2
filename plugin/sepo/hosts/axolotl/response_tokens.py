"""The policy's tokens of an answer as Axolotl makes them: placed in its text, and with the user's scores."""

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
    """Answers in the policy's tokens.

    Args:
        tokenizer: the policy's.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._texts = TokenTexts(tokenizer)

    def place(self, conversation: Mapping[str, Any], kept: Sequence[int], side: str) -> TokenSpans | None:
        """Place an answer's tokens in its text.

        Args:
            conversation: the row's, with its ``answers``.
            kept: the tokens of the answer, of which Axolotl may have cut the end.
            side: ``chosen`` or ``rejected``.

        Returns:
            Their places, without an end of turn where it was cut; None where they do not spell the text.
        """
        text = conversation["answers"][SIDES.index(side)]
        trimmed = text.strip()  # as some templates write it
        for said, skipped in ((text, 0), (trimmed, text.find(trimmed))):
            spans = self._texts.spans(kept, said) or self._cut(kept, said)
            if spans is not None:
                return moved_spans(spans, skipped, len(said), len(text))
        return None

    def _cut(self, kept: Sequence[int], text: str) -> TokenSpans | None:
        """The places of an answer's tokens where its end is missing, perhaps from inside a character."""
        said = self._texts.spelled(kept).rstrip(_BROKEN)
        offsets = self._texts.offsets(kept, said) if said and text.startswith(said) else None
        return None if offsets is None else TokenSpans(tuple(offsets))


class UserScores:
    """``token_scorer: file``: numbers or spans of the rows, as one number per token.

    Args:
        columns: the two in which the rows have them, from ``score_columns``.
        tokenizer: the policy's.
        name: what errors call the data set.
    """

    def __init__(self, columns: Sequence[str], *, tokenizer: Any, name: str) -> None:
        self._spans = columns[0].endswith("_spans")
        self._tokenizer, self._name = tokenizer, name
        self._responses = PolicyResponses(tokenizer)

    def of(self, row: Mapping[str, Any], side: str, answer: Sequence[int]) -> list[float]:
        """One number per token of an answer.

        Args:
            row: with the user's columns and, for spans, the conversation.
            side: ``chosen`` or ``rejected``.
            answer: its tokens, none cut.

        Raises:
            SepoError: what the row has does not fit its answer.
        """
        begins = self._tokenizer.decode(list(answer[:12]))
        where = f"the row of {self._name} whose {side} answer begins {begins!r}"
        if not self._spans:
            scores = checked_scores(row, side, where=where)
            if len(scores) != len(answer):
                raise not_counted(where, side, found=len(scores), expected=len(answer))
            return scores
        if not row.get(CONVERSATION):
            raise SepoError(
                f"{where} has spans, which are placed in the answer's text, and only data sets of type "
                "chat_template.default and chat_template.argilla_chat leave it recognizable; use one of them, or give "
                "per-token chosen_scores and rejected_scores."
            )
        conversation = json.loads(row[CONVERSATION])
        spans = checked_spans(row, side, where=where, characters=len(conversation["answers"][SIDES.index(side)]))
        placed = self._responses.place(conversation, answer, side)
        if placed is None:
            raise not_spelled(where, side)
        return scores_of_spans(placed, spans, side)
