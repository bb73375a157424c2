"""Tokenized rows with their conversation, for prompts that quote it and for models with another tokenizer.

See ../PATCHES.md for the names that are rebound.
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, ClassVar

from llamafactory.data import loader
from llamafactory.data.processor import PairwiseDatasetProcessor

from sepo.errors import SepoError
from sepo.hosts.llamafactory.pair_encoding import joined_processor
from sepo.hosts.llamafactory.response_tokens import response_text
from sepo.text.conversations import CARRIED_EXPECTED, CONVERSATION, EVALUATED, EXPECTED, EXPORTED, QUOTED, READ

_MEDIA = ("images", "videos", "audios")


class ConversationKeepingProcessor(PairwiseDatasetProcessor):
    """The host's pairwise processor, with an additional column for the conversation of each row.

    Attributes:
        reader: the consumer of the text, and the advice for rows that contain more than text, for error messages.
    """

    reader: ClassVar[tuple[str, str]] = QUOTED

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Tokenize a batch of aligned rows as the host does.

        Raises:
            SepoError: a row contains media, which a text prompt cannot quote.
        """
        columns: dict[str, list[Any]] = defaultdict(list)
        for index in range(len(examples["_prompt"])):
            row = {name: [values[index]] for name, values in examples.items()}
            made = super().preprocess_dataset(row)
            if not made.get("chosen_input_ids"):  # the host drops invalid rows
                continue
            for name, values in made.items():
                columns[name] += values
            for name, value in self.kept({name: values[0] for name, values in row.items()}).items():
                columns[name].append(value)
        return columns

    def kept(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the additional columns of an aligned row."""
        return {CONVERSATION: _conversation(row, self.reader, template=self.template)}


class TextReadingProcessor(ConversationKeepingProcessor):
    """Processor for an oracle that reads the text in its own tokens."""

    reader: ClassVar[tuple[str, str]] = READ


class ExportingProcessor(ConversationKeepingProcessor):
    """Processor for scores that are exported with their text."""

    reader: ClassVar[tuple[str, str]] = EXPORTED


class EvaluatingProcessor(ConversationKeepingProcessor):
    """Processor for prompts from which a policy generates, with their expected answers if these were carried."""

    reader: ClassVar[tuple[str, str]] = EVALUATED

    def kept(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the additional columns of an aligned row."""
        expected = {EXPECTED: row[CARRIED_EXPECTED]} if CARRIED_EXPECTED in row else {}
        return {**super().kept(row), **expected}


_KEEPING = (ConversationKeepingProcessor, TextReadingProcessor, ExportingProcessor, EvaluatingProcessor)
_PROCESSORS = {kind.reader: kind for kind in _KEEPING}


def _conversation(row: dict[str, Any], reader: tuple[str, str] = QUOTED, *, template: Any = None) -> str:
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


@contextlib.contextmanager
def conversations_kept(wanted: bool, reader: tuple[str, str] = QUOTED) -> Iterator[None]:
    """Make the host's ``get_dataset`` keep the column ``CONVERSATION`` inside the context.

    Args:
        wanted: whether to keep the column; if False, nothing changes.
        reader: the consumer of the text, one of ``QUOTED``, ``READ``, ``EXPORTED`` and ``EVALUATED``, for the error
            message about rows with images.
    """
    if not wanted:
        yield
        return
    before = loader.PairwiseDatasetProcessor
    keeping = _PROCESSORS[reader]
    loader.PairwiseDatasetProcessor = joined_processor(keeping, before)
    try:
        yield
    finally:
        loader.PairwiseDatasetProcessor = before
