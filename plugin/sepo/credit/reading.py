"""Rejected answers as a model's tokens: in the tokenizer's own chat template, and which of them are marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from sepo.credit.data import LabelledPair
from sepo.credit.evaluate import MarkedResponse
from sepo.forward.revision_rewards import ContrastivePair
from sepo.text.chat_encoding import ChatReader, ReadResponse
from sepo.text.revision_prompts import quoted_conversation
from sepo.text.spans import marked_tokens
from sepo.training.row_scores import contrastive_pair


class Reader(Protocol):
    """How pairs become tokens."""

    def read(self, pair: LabelledPair) -> ReadResponse:
        """The rejected answer behind its conversation; the tokens from ``response_start`` on are the measured ones."""

    def contrastive(self, pair: LabelledPair, read: ReadResponse) -> ContrastivePair:
        """The same answer behind T-REG's two prompts."""


class ChatTemplateReader:
    """Reads in a tokenizer's chat template, as an oracle with a tokenizer of its own does before training.

    Args:
        tokenizer: one of transformers'.
        name: what errors call the model.
        chat_template: in place of the tokenizer's own (the one that was saved with an adapter), or None.
        max_tokens: most tokens of a conversation with its answer.

    Raises:
        SepoError: there is no chat template.
    """

    def __init__(self, tokenizer: Any, *, name: str, chat_template: str | None, max_tokens: int) -> None:
        self._chats = ChatReader(tokenizer, name=name, chat_template=chat_template, max_tokens=max_tokens)

    def read(self, pair: LabelledPair) -> ReadResponse:
        """As ``Reader``.

        Raises:
            SepoError: the template refuses the conversation, or the tokens do not spell the answer.
        """
        _, rejected = self._chats.read(pair.conversation)
        return rejected

    def contrastive(self, pair: LabelledPair, read: ReadResponse) -> ContrastivePair:
        """As ``Reader``."""
        return contrastive_pair(
            quoted_conversation(pair.messages, system=pair.system, tools=pair.tools),
            pair.rejected,
            read.input_ids[read.response_start :],
            tokenizer=self._chats.tokenizer,
            chat_template=self._chats.chat_template,
        )


def mark(pair: LabelledPair, read: ReadResponse, *, text_only: bool) -> MarkedResponse:
    """Mark the tokens that overlap the known errors.

    Args:
        pair: the row.
        read: its rejected answer's tokens.
        text_only: leave out tokens that cover no character of the answer (end of turn, words of the template); else
            they count as unmarked.
    """
    offsets = read.spans.offsets
    kept = text_mask(read) if text_only else np.ones(len(offsets), dtype=bool)

    def marks(kind: str | None) -> np.ndarray:
        spans = [(span.start, span.end) for span in pair.spans if kind in (None, span.type)]
        return np.array(marked_tokens(offsets, spans), dtype=bool)[kept]

    kinds = dict.fromkeys(span.type for span in pair.spans)
    return MarkedResponse(marks(None), {kind: marks(kind) for kind in kinds})


def text_mask(read: ReadResponse) -> np.ndarray:
    """Bool [T], True where a token covers a character of the answer."""
    return np.array([end > start for start, end in read.spans.offsets], dtype=bool)


def lost_errors(pairs: Sequence[LabelledPair], reads: Sequence[ReadResponse]) -> int:
    """How many spans lie wholly in what truncation cut from the answers."""
    lost = 0
    for pair, read in zip(pairs, reads, strict=True):
        last = max((end for _, end in read.spans.offsets), default=0)
        lost += sum(span.start >= last for span in pair.spans) if read.response_cut else 0
    return lost
