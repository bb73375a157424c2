"""Tokenized rows with their conversation, for prompts that quote it and for models with another tokenizer.

See ../PATCHES.md for the names that are rebound.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any, ClassVar

from sepo.errors import SepoError
from sepo.hosts.llamafactory.response_tokens import response_text
from sepo.hosts.llamafactory.row_processor import RowProcessor, processed_by
from sepo.text.conversations import CARRIED_EXPECTED, CONVERSATION, EVALUATED, EXPECTED, EXPORTED, QUOTED, READ

_MEDIA = ("images", "videos", "audios")


class ConversationKeepingProcessor(RowProcessor):
    """The host's pairwise processor, with an additional column for the conversation of each row.

    Attributes:
        reader: the consumer of the text, and the advice for rows that contain more than text, for error messages.
    """

    reader: ClassVar[tuple[str, str]] = QUOTED

    def more_columns(self, row: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
        """Return the column ``CONVERSATION``.

        Raises:
            SepoError: a row contains media, which a text prompt cannot quote.
        """
        return {
            **super().more_columns(row, made),
            CONVERSATION: _conversation(row, self.reader, template=self.template),
        }


class TextReadingProcessor(ConversationKeepingProcessor):
    """Processor for an oracle that reads the text in its own tokens."""

    reader: ClassVar[tuple[str, str]] = READ


class ExportingProcessor(ConversationKeepingProcessor):
    """Processor for scores that are exported with their text."""

    reader: ClassVar[tuple[str, str]] = EXPORTED


class EvaluatingProcessor(ConversationKeepingProcessor):
    """Processor for prompts from which a policy generates, with their expected answers if these were carried."""

    reader: ClassVar[tuple[str, str]] = EVALUATED

    def more_columns(self, row: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns ``CONVERSATION`` and, if it was carried, ``EXPECTED``."""
        expected = {EXPECTED: row[CARRIED_EXPECTED]} if CARRIED_EXPECTED in row else {}
        return {**super().more_columns(row, made), **expected}


_KEEPING = (ConversationKeepingProcessor, TextReadingProcessor, ExportingProcessor, EvaluatingProcessor)
_PROCESSORS = {kind.reader: kind for kind in _KEEPING}


def _conversation(row: Mapping[str, Any], reader: tuple[str, str] = QUOTED, *, template: Any = None) -> str:
    media = [name for name in _MEDIA if row.get(f"_{name}")]
    if media:
        raise SepoError(
            f"a row has {media[0]}, and {reader[0]} text only; {reader[1]}. The row begins "
            f"{row['_prompt'][0]['content'][:60]!r}."
        )
    # T-REG's prompts quote the host's row, calls of tools as JSON: stores of their scores are found by it.
    quoted = reader == QUOTED
    kept = {
        "messages": row["_prompt"],
        "answers": [turn["content"] if quoted else response_text(turn, template) for turn in row["_response"][:2]],
        "system": row["_system"] or "",
        "tools": row["_tools"] or "",
    }
    return json.dumps(kept, ensure_ascii=False)


def conversations_kept(wanted: bool, reader: tuple[str, str] = QUOTED) -> contextlib.AbstractContextManager[None]:
    """Make the host's ``get_dataset`` keep the column ``CONVERSATION`` inside the context.

    Args:
        wanted: whether to keep the column; if False, nothing changes.
        reader: the consumer of the text, one of ``QUOTED``, ``READ``, ``EXPORTED`` and ``EVALUATED``, for the error
            message about rows with images.
    """
    return processed_by(_PROCESSORS[reader]) if wanted else contextlib.nullcontext()
