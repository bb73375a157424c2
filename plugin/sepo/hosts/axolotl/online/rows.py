"""Prompts of stage `rto` as Axolotl loads their rows: of pairs, of conversations, or of a function for GRPO."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from sepo.errors import SepoError
from sepo.hosts.axolotl.conversations import is_conversation, template_text
from sepo.hosts.axolotl.messages import Columns, Message, Writer, read_prompt
from sepo.hosts.axolotl.rows import LEFT_OUT, loader_wrapped
from sepo.judges import Judge, find_judge, is_absent
from sepo.recipe.response_rewards import RewardSettings
from sepo.text.messages import MessageReader, UnreadableRow, tools_text

TEXT = "sepo_prompt"
"""Column of loaded rows: the prompt as text, up to the start of the response."""

REST = "sepo_rest"
"""Column of loaded rows: ``messages``, ``system``, ``tools`` and ``expected`` of ``prompt_row``, as JSON."""

_PROMPT = "prompt"
"""Column that functions for GRPO make: messages, or text."""

_Read = Callable[[Mapping[str, Any], Any], tuple[str | list[Message], Any, Mapping[str, Any]]]
"""Reads a row, given the tokenizer: the prompt, descriptions of tools, and the columns with the expected answer."""


@contextlib.contextmanager
def prompts_read(entries: Sequence[Mapping[str, Any]], rewards: RewardSettings) -> Iterator[None]:
    """Make Axolotl read prompts, as ``TEXT`` and ``REST``, while it loads its data sets.

    Unreadable rows have a reason in the column ``LEFT_OUT``.

    Args:
        entries: the data sets of the raw config, with names of columns.
        rewards: how responses are judged, with the column of the expected answers.

    Raises:
        SepoError: If a data set has another type.
    """
    with loader_wrapped(
        partial(_reading, entries=entries, rewards=rewards), name=f"-prompts-{rewards.expected_column}"
    ):
        yield


def _reading(
    loaded: Any, kind: str, cfg: Any, index: int, *, entries: Sequence[Mapping[str, Any]], rewards: RewardSettings
) -> Any:
    entry = entries[index] if index < len(entries) else {}
    if is_conversation(kind):
        read = _from_messages(entry, whole=kind.endswith("argilla_chat"))
    elif loaded is None or not isinstance(kind, str):
        raise SepoError(
            f"a data set has the type {kind}, expected chat_template.default (pairs or conversations), "
            "chat_template.argilla_chat (pairs of whole conversations), or a function as for rl: grpo, which returns a "
            "prompt."
        )
    else:
        read = _from_function(loaded, kind)
    judge = find_judge(rewards.judge, **rewards.options) if rewards.is_verifier else None

    def transform(sample: Mapping[str, Any], tokenizer: Any) -> dict[str, str]:
        try:
            messages, tools, row = read(sample, tokenizer)
            if isinstance(messages, str):  # as GRPO continues it
                text, messages = messages, [{"role": "user", "content": messages}]
            else:
                writer = Writer(tokenizer, template_text(cfg, tokenizer, entry=entry))
                text = writer.write_prompt(messages, tools)
            system, turns = MessageReader().conversation(messages, role="user", what="the prompt")
            expected = None if judge is None else _expected(row, rewards.expected_column, judge)
        except UnreadableRow as error:
            return {TEXT: "", REST: "{}", LEFT_OUT: str(error)}
        rest = {"messages": turns, "system": system or "", "tools": tools_text(tools), "expected": expected}
        return {TEXT: text, REST: json.dumps(rest, ensure_ascii=False), LEFT_OUT: ""}

    def batch(samples: Mapping[str, list[Any]], tokenizer: Any = None) -> dict[str, list[str]]:
        made = [
            transform(dict(zip(samples, row, strict=True)), tokenizer) for row in zip(*samples.values(), strict=True)
        ]
        return {name: [row[name] for row in made] for name in (TEXT, REST, LEFT_OUT)}

    return batch, {"remove_columns": "__all__", "batched": True, "try_original_type": False}


def _from_messages(entry: Mapping[str, Any], *, whole: bool) -> _Read:
    """Return a reader of rows of pairs or conversations."""
    columns = Columns.of(entry, whole=whole)

    def read(sample: Mapping[str, Any], tokenizer: Any) -> tuple[str | list[Message], Any, Mapping[str, Any]]:
        messages, tools = read_prompt(sample, columns)
        return messages, tools, sample

    return read


def _from_function(loaded: Any, kind: str) -> _Read:
    """Return a reader of the rows of a user's function, ``type: module.function`` of ``rl: grpo``."""
    function, more = loaded if isinstance(loaded, tuple) else (loaded, {})
    takes_tokenizer = "tokenizer" in inspect.signature(function).parameters

    def read(sample: Mapping[str, Any], tokenizer: Any) -> tuple[str | list[Message], Any, Mapping[str, Any]]:
        given: Mapping[str, Any] = {name: [value] for name, value in sample.items()} if more.get("batched") else sample
        made = function(given, **({"tokenizer": tokenizer} if takes_tokenizer else {}))
        row = {**sample, **({name: values[0] for name, values in made.items()} if more.get("batched") else made)}
        if _PROMPT not in row:
            raise SepoError(
                f"the rows of type {kind} have the columns {', '.join(row)}, expected a prompt among them: a data set "
                "of pairs or conversations has the type chat_template.default."
            )
        if isinstance(row[_PROMPT], str):
            return row[_PROMPT], None, row
        messages, tools = read_prompt(row, Columns(_PROMPT, "", ""))
        return messages, tools, row

    return read


def _expected(row: Mapping[str, Any], column: str, judge: Judge) -> Any:
    """Return the expected answer of a row for a verifier.

    Raises:
        UnreadableRow: If it is empty.
        SepoError: If there is no such column, or its value is no expected answer.
    """
    if column not in row:
        raise SepoError(
            f"expected_column is {column}, but the rows have the columns {', '.join(row)}; set it to the column with "
            "the expected answers."
        )
    if is_absent(row[column]):
        raise UnreadableRow(f"{column} (expected_column) is empty")
    judge.read(row[column])
    return row[column]
