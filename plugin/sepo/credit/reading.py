"""Tokenization of rejected responses in a chat template, and marking of the tokens that overlap known errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from sepo.credit.data import LabelledPair
from sepo.credit.evaluate import MarkedResponse
from sepo.credit.units import step_units
from sepo.forward.revision_rewards import ContrastivePair
from sepo.text.chat_encoding import ChatReader, ReadResponse
from sepo.text.revision_prompts import quoted_conversation
from sepo.text.spans import marked_tokens
from sepo.text.token_texts import TokenTexts
from sepo.training.row_scores import contrastive_pair


class Reader(Protocol):
    """Interface for tokenizing pairs."""

    def read(self, pair: LabelledPair) -> ReadResponse:
        """Tokenize the conversation with its rejected response; tokens from ``response_start`` on are measured."""

    def contrastive(self, pair: LabelledPair, read: ReadResponse) -> ContrastivePair:
        """Tokenize the same response after T-REG's two prompts."""


class ChatTemplateReader:
    """A reader with a tokenizer's chat template, as used before training for an oracle with another tokenizer.

    Args:
        tokenizer: a tokenizer of transformers.
        name: name of the model in error messages.
        chat_template: replaces the tokenizer's chat template (saved with an adapter, for example), or None.
        max_tokens: maximum tokens of a conversation with its response.

    Raises:
        SepoError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, *, name: str, chat_template: str | None, max_tokens: int) -> None:
        self._chats = ChatReader(tokenizer, name=name, chat_template=chat_template, max_tokens=max_tokens)

    def read(self, pair: LabelledPair) -> ReadResponse:
        """See ``Reader``.

        Raises:
            SepoError: the template raises for the conversation, or the tokens do not decode to the response.
        """
        _, rejected = self._chats.read(pair.conversation)
        return rejected

    def contrastive(self, pair: LabelledPair, read: ReadResponse) -> ContrastivePair:
        """See ``Reader``."""
        return contrastive_pair(
            quoted_conversation(pair.messages, system=pair.system, tools=pair.tools),
            pair.rejected,
            read.input_ids[read.response_start :],
            tokenizer=self._chats.tokenizer,
            chat_template=self._chats.chat_template,
        )


def mark(pair: LabelledPair, read: ReadResponse, *, text_only: bool) -> MarkedResponse:
    """Mark the tokens of a rejected response that overlap its known errors.

    Args:
        pair: the row.
        read: the tokens of its rejected response.
        text_only: exclude tokens that cover no character of the response (end of turn, text of the template); otherwise
            they are unmarked.
    """
    offsets = read.spans.offsets
    kept = text_mask(read) if text_only else np.ones(len(offsets), dtype=bool)

    def marks(kind: str | None) -> np.ndarray:
        spans = [(span.start, span.end) for span in pair.spans if kind in (None, span.type)]
        return np.array(marked_tokens(offsets, spans), dtype=bool)[kept]

    kinds = dict.fromkeys(span.type for span in pair.spans)
    known = None
    if pair.unlabelled:
        # A token across the end of an error is wrong; one without text is as unlabelled as the text before it.
        reached = [(start, end) if end > start else (start - 1, end) for start, end in offsets]
        known = marks(None) | ~np.array(marked_tokens(reached, pair.unlabelled), dtype=bool)[kept]
    return MarkedResponse(marks(None), {kind: marks(kind) for kind in kinds}, pair.language, known)


def text_mask(read: ReadResponse) -> np.ndarray:
    """Return a bool mask [T], True for tokens that cover a character of the response."""
    return np.array([end > start for start, end in read.spans.offsets], dtype=bool)


def steps_of(pair: LabelledPair, read: ReadResponse, texts: TokenTexts) -> np.ndarray:
    """Return the number of each token's step, int [T]: the steps of the pair, or else lines and sentences."""
    if pair.steps:
        return np.array(step_units(read.spans.offsets, pair.steps), dtype=np.int64)
    return lines_of(read, texts)


def lines_of(read: ReadResponse, texts: TokenTexts) -> np.ndarray:
    """Return the number of each token's line or sentence, int [T]: the steps of a selection in training."""
    return np.array(texts.steps(read.input_ids[read.response_start :]), dtype=np.int64)


def lost_errors(pairs: Sequence[LabelledPair], reads: Sequence[ReadResponse]) -> int:
    """Count the spans that lie entirely in the truncated part of their responses."""
    lost = 0
    for pair, read in zip(pairs, reads, strict=True):
        last = max((end for _, end in read.spans.offsets), default=0)
        lost += sum(span.start >= last for span in pair.spans) if read.response_cut else 0
    return lost
