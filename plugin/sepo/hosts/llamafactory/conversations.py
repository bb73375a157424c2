"""Tokenized rows that keep their conversation, which T-REG's prompts quote. See ../PATCHES.md for what is rebound."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from llamafactory.data import loader
from llamafactory.data.processor import PairwiseDatasetProcessor

from sepo.errors import SepoError

CONVERSATION = "sepo_conversation"
"""Column: JSON with ``messages`` (the prompt's turns), ``answers`` (chosen, rejected), ``system`` and ``tools``."""

_MEDIA = ("images", "videos", "audios")


class ConversationKeepingProcessor(PairwiseDatasetProcessor):
    """The host's processor of pairs, with the conversation of each row that it keeps in a column of its own."""

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
            columns[CONVERSATION].append(_conversation({name: values[0] for name, values in row.items()}))
        return columns


def _conversation(row: dict[str, Any]) -> str:
    media = [name for name in _MEDIA if row.get(f"_{name}")]
    if media:
        raise SepoError(
            f"a row has {media[0]}, and T-REG's prompts quote text only, as exports do; use treg_rewards: oracle, or "
            "text data. "
            f"The row begins {row['_prompt'][0]['content'][:60]!r}."
        )
    kept = {
        "messages": row["_prompt"],
        "answers": [answer["content"] for answer in row["_response"][:2]],
        "system": row["_system"] or "",
        "tools": row["_tools"] or "",
    }
    return json.dumps(kept, ensure_ascii=False)


@contextlib.contextmanager
def conversations_kept(wanted: bool) -> Iterator[None]:
    """Have the host's ``get_dataset`` keep the column ``CONVERSATION``, where it is wanted.

    Args:
        wanted: False changes nothing.
    """
    if not wanted:
        yield
        return
    before = loader.PairwiseDatasetProcessor
    keeping: type = ConversationKeepingProcessor
    if before is not PairwiseDatasetProcessor:  # rows that carry the user's scores, too
        keeping = type(keeping.__name__, (ConversationKeepingProcessor, before), {})
    loader.PairwiseDatasetProcessor = keeping
    try:
        yield
    finally:
        loader.PairwiseDatasetProcessor = before
