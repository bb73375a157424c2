"""Rows that carry the conversation that they were made of: prompts quote it, and models with other tokens read it."""

from __future__ import annotations

import hashlib
from typing import Any

from datasets import Dataset

from sepo.errors import SepoError

CONVERSATION = "sepo_conversation"
"""Column: JSON with ``messages`` (the prompt's turns), ``answers`` (chosen, rejected), ``system`` and ``tools``."""

QUOTED = ("T-REG's prompts quote", "use treg_rewards: oracle, or text data")
READ = ("an oracle with another tokenizer reads", "take an oracle with the policy's tokenizer, or text data")
EXPORTED = ("exports hold", "export another data set")
EVALUATED = ("evaluations read", "evaluate text data")


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
