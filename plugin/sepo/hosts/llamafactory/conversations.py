"""Tokenized rows that keep their conversation: prompts quote it, and models with other tokens read it.

See ../PATCHES.md for what is rebound.
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
from sepo.text.conversations import CONVERSATION, EVALUATED, EXPORTED, QUOTED, READ

_MEDIA = ("images", "videos", "audios")


class ConversationKeepingProcessor(PairwiseDatasetProcessor):
    """The host's processor of pairs, with the conversation of each row that it keeps in a column of its own.

    Attributes:
        reader: who needs the text, and what to do about rows that are more than text.
    """

    reader: ClassVar[tuple[str, str]] = QUOTED

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Tokenize a batch of aligned rows as the host does.

        Raises:
            SepoError: a row has media, which a text prompt cannot quote.
        """
        columns: dict[str, list[Any]] = defaultdict(list)
        for index in range(len(examples["_prompt"])):
            row = {name: [values[index]] for name, values in examples.items()}
            made = super().preprocess_dataset(row)
            if not made.get("chosen_input_ids"):  # the host drops invalid rows
                continue
            for name, values in made.items():
                columns[name] += values
            aligned = {name: values[0] for name, values in row.items()}
            columns[CONVERSATION].append(_conversation(aligned, self.reader))
        return columns


class TextReadingProcessor(ConversationKeepingProcessor):
    """The same for an oracle that reads the text in its own tokens."""

    reader: ClassVar[tuple[str, str]] = READ


class ExportingProcessor(ConversationKeepingProcessor):
    """The same for scores that are exported beside their text."""

    reader: ClassVar[tuple[str, str]] = EXPORTED


class EvaluatingProcessor(ConversationKeepingProcessor):
    """The same for prompts that a policy is asked to answer."""

    reader: ClassVar[tuple[str, str]] = EVALUATED


_KEEPING = (ConversationKeepingProcessor, TextReadingProcessor, ExportingProcessor, EvaluatingProcessor)
_PROCESSORS = {kind.reader: kind for kind in _KEEPING}


def _conversation(row: dict[str, Any], reader: tuple[str, str] = QUOTED) -> str:
    media = [name for name in _MEDIA if row.get(f"_{name}")]
    if media:
        raise SepoError(
            f"a row has {media[0]}, and {reader[0]} text only; {reader[1]}. The row begins "
            f"{row['_prompt'][0]['content'][:60]!r}."
        )
    kept = {
        "messages": row["_prompt"],
        "answers": [answer["content"] for answer in row["_response"][:2]],
        "system": row["_system"] or "",
        "tools": row["_tools"] or "",
    }
    return json.dumps(kept, ensure_ascii=False)


@contextlib.contextmanager
def conversations_kept(wanted: bool, reader: tuple[str, str] = QUOTED) -> Iterator[None]:
    """Have the host's ``get_dataset`` keep the column ``CONVERSATION``, where it is wanted.

    Args:
        wanted: False changes nothing.
        reader: who needs the text, ``QUOTED``, ``READ``, ``EXPORTED`` or ``EVALUATED``, for what is said of rows with
            images.
    """
    if not wanted:
        yield
        return
    before = loader.PairwiseDatasetProcessor
    keeping: type = _PROCESSORS[reader]
    if before is not PairwiseDatasetProcessor:  # rows that carry the user's scores, too
        keeping = type(keeping.__name__, (ConversationKeepingProcessor, before), {"reader": reader})
    loader.PairwiseDatasetProcessor = keeping
    try:
        yield
    finally:
        loader.PairwiseDatasetProcessor = before
