"""Tokenized rows that keep their conversation: prompts quote it, and models with other tokens read it.

See ../PATCHES.md for what is rebound.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, ClassVar

from datasets import Dataset
from llamafactory.data import loader
from llamafactory.data.processor import PairwiseDatasetProcessor

from sepo.errors import SepoError

CONVERSATION = "sepo_conversation"
"""Column: JSON with ``messages`` (the prompt's turns), ``answers`` (chosen, rejected), ``system`` and ``tools``."""

QUOTED = ("T-REG's prompts quote", "use treg_rewards: oracle, or text data")
READ = ("an oracle with another tokenizer reads", "take an oracle with the policy's tokenizer, or text data")
EXPORTED = ("exports hold", "export another data set")
EVALUATED = ("evaluations read", "evaluate text data")

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


def check_conversations(dataset: Dataset, *, name: str, reader: str) -> None:
    """Refuse rows without their conversation.

    Args:
        dataset: tokenized pairs.
        name: what the log calls the data set.
        reader: who needs it, and for what.

    Raises:
        SepoError: there is no such column.
    """
    if CONVERSATION not in dataset.column_names:
        raise SepoError(
            f"the rows of {name} carry no conversation {reader}: another stage tokenized them. Remove tokenized_path, "
            "or make it anew with this recipe."
        )


def add_conversations(digest: Any, dataset: Dataset) -> None:
    """Add every row's conversation to a digest of ``hashlib``."""
    texts = dataset.select_columns([CONVERSATION])
    for start in range(0, len(texts), 1000):
        for text in texts[start : start + 1000][CONVERSATION]:
            digest.update(hashlib.sha256(text.encode()).digest())


def without_conversations(dataset: Dataset) -> Dataset:
    """The data set without its conversations, where it has them."""
    return dataset.remove_columns([CONVERSATION]) if CONVERSATION in dataset.column_names else dataset


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
