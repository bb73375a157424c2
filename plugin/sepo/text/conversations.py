"""The conversation column of tokenized rows, for T-REG's prompts and for models with another tokenizer."""

from __future__ import annotations

import hashlib
from typing import Any

from datasets import Dataset

from sepo.errors import SepoError

CONVERSATION = "sepo_conversation"
"""Column: JSON with ``messages`` (the prompt's turns), ``answers`` (the chosen and the rejected response), ``system``
and ``tools``."""

EXPECTED = "sepo_expected"
"""Column of rows for evaluation: the expected answer as JSON, or null."""

CARRIED_EXPECTED = "_sepo_expected"
"""Name of this column on the way through a host's converter."""

# What needs the conversation, and what to do instead, as they stand in error messages.
QUOTED = ("T-REG's prompts quote", "use treg_rewards: oracle, or text data")
READ = ("an oracle with another tokenizer reads", "use an oracle with the policy's tokenizer, or text data")
EXPORTED = ("exports contain", "export another data set")
EVALUATED = ("evaluations read", "evaluate text data")


def check_conversations(dataset: Dataset, *, name: str, reader: str) -> None:
    """Raise if rows lack their conversation.

    Args:
        dataset: tokenized pairs.
        name: name of the data set in messages.
        reader: what needs the conversation, and for what.

    Raises:
        SepoError: if there is no such column.
    """
    if CONVERSATION not in dataset.column_names:
        raise SepoError(
            f"the rows of {name} carry no conversation {reader}: another stage tokenized them. Remove tokenized_path, "
            "or tokenize again with this recipe."
        )


def add_conversations(digest: Any, dataset: Dataset) -> None:
    """Update a ``hashlib`` digest with every row's conversation."""
    texts = dataset.select_columns([CONVERSATION])
    for start in range(0, len(texts), 1000):
        for text in texts[start : start + 1000][CONVERSATION]:
            digest.update(hashlib.sha256(text.encode()).digest())


def without_conversations(dataset: Dataset) -> Dataset:
    """Return the data set without its conversation column, if it has one."""
    return dataset.remove_columns([CONVERSATION]) if CONVERSATION in dataset.column_names else dataset
