"""Preference rows of messages: read with their tool calls and thoughts, and written by a chat template.

Axolotl's prompt strategies pass only role and content of a message to the chat template, and the response without its
prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from sepo.text.messages import (
    REASONING_KEYS,
    ROLES,
    MessageReader,
    UnreadableRow,
    kind_of,
    split_pair,
    tool_call,
    tools_text,
    without_nulls,
)

Message = dict[str, Any]

_TEMPLATE_ROLES = {"observation": "tool", "function": "assistant"}
_HOST_ROLES = ("user", "assistant", "system", "tool")
_READER = MessageReader()

TOOLS_UNWRITTEN = "the chat template does not write the tools of the column tools"
THOUGHT_UNWRITTEN = "the chat template does not write the thought of a response (reasoning_content)"


class Columns(NamedTuple):
    """Columns of a data set; ``prompt`` is None if both responses are whole conversations (``argilla_chat``)."""

    prompt: str | None
    chosen: str
    rejected: str
    tools: str = "tools"

    @classmethod
    def of(cls, rows: Mapping[str, Any], *, whole: bool) -> Columns:
        """Read the names in a data set's entry of the config.

        Args:
            rows: the entry.
            whole: whether both responses are whole conversations.
        """
        prompt = None if whole else rows.get("field_messages") or "messages"
        chosen, rejected, tools = (rows.get(f"field_{name}") or name for name in ("chosen", "rejected", "tools"))
        return cls(prompt, chosen, rejected, tools)


class Row(NamedTuple):
    """A preference row as a chat template takes it.

    Args:
        prompt: the messages before the responses.
        chosen: the message of the preferred response.
        rejected: that of the other one.
        tools: descriptions of tools, or None.
        plain: whether the host's strategy reads the same messages, so that its rendering loses nothing.
    """

    prompt: list[Message]
    chosen: Message
    rejected: Message
    tools: list[Any] | None
    plain: bool


def read_row(sample: Mapping[str, Any], columns: Columns) -> Row:
    """Read a row.

    Args:
        sample: the row.
        columns: its columns.

    Raises:
        UnreadableRow: if it is not a prompt with two responses of one turn each, or a message cannot be read.
    """
    before = [] if columns.prompt is None else _messages(sample.get(columns.prompt), "user", "the prompt")
    chosen = _messages(sample.get(columns.chosen), "assistant", "chosen")
    rejected = _messages(sample.get(columns.rejected), "assistant", "rejected")
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if not side:
            raise UnreadableRow(f"{name} is empty")
        if side[-1]["role"] != "assistant":
            raise UnreadableRow(f"{name} ends with a turn of {side[-1]['role']}")
    # A column `messages` is often the chosen conversation, its response included.
    with_response = len(before) > 1 and before == chosen
    prompt, responses = split_pair(before[:-1] if with_response else before, chosen, rejected)
    tools = _tools(sample, columns)
    as_read_by_host = before if columns.prompt is not None else chosen[:-1]
    plain = (
        not tools
        and as_read_by_host == prompt
        and all(set(message) == {"role", "content"} for message in (*prompt, *responses))
        and all(_host_reads(sample.get(column)) for column in columns[:3] if column is not None)
    )
    return Row(prompt, *responses, tools, plain)


def _tools(sample: Mapping[str, Any], columns: Columns) -> list[Any] | None:
    tools = json.loads(tools_text(sample.get(columns.tools)) or "null")
    if tools is not None and not isinstance(tools, list):
        raise UnreadableRow(f"tools is {kind_of(tools)}; a list is expected")
    return tools or None


def read_prompt(sample: Mapping[str, Any], columns: Columns) -> tuple[list[Message], list[Any] | None]:
    """Read the messages before the response of a preference row or of a conversation, whose last turn is the response.

    Args:
        sample: the row; one without a chosen response is a conversation.
        columns: its columns.

    Returns:
        The messages and the descriptions of tools, or None.

    Raises:
        UnreadableRow: if there is no prompt, or a message cannot be read.
    """
    if sample.get(columns.chosen) is not None:
        row = read_row(sample, columns)
        return row.prompt, row.tools
    turns = [] if columns.prompt is None else _messages(sample.get(columns.prompt), "user", "the conversation")
    while turns and turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    if not any(turn["role"] != "system" for turn in turns):
        raise UnreadableRow("the conversation has no turn before its response")
    return turns, _tools(sample, columns)


def _host_reads(value: Any) -> bool:
    """Return whether the host's strategy can read text, a message or messages."""
    if isinstance(value, str):
        return True
    messages = [value] if isinstance(value, Mapping) else value
    return all(item.get("role") in _HOST_ROLES and isinstance(item.get("content"), str) for item in messages)


def _messages(value: Any, role: str, what: str) -> list[Message]:
    if value is None:
        return []
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    messages = [value] if isinstance(value, Mapping) else value
    if not isinstance(messages, Sequence):
        raise UnreadableRow(f"{what} is {kind_of(value)}; text or messages are expected")
    return [_message(message, what) for message in messages]


def _message(message: Any, what: str) -> Message:
    if not isinstance(message, Mapping):
        raise UnreadableRow(f"{what} has a message that is {kind_of(message)}; role and content are expected")
    given: Message = without_nulls(message)
    name = given.get("role") or given.get("from")
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise UnreadableRow(f"{what} has a message with the role {name if name is None else repr(str(name)[:20])}")
    content = given.get("content", given.get("value"))
    calls = given.get("tool_calls") or given.get("function_call") or []
    if role == "function":  # the content is the calls, as JSON text
        calls, content = _calls_of(content), ""
    thought = next((given[key] for key in REASONING_KEYS if given.get(key)), None)
    made: Message = {"role": _TEMPLATE_ROLES.get(role, role), "content": _content(content, role, what, calls, thought)}
    if thought is not None:
        made["reasoning_content"] = thought
    if calls:
        called = [calls] if isinstance(calls, Mapping) else calls
        made["tool_calls"] = [{"type": "function", "function": tool_call(call)} for call in called]
    if made["role"] == "assistant":
        made |= {"thinking": given["thinking"]} if given.get("thinking") else {}
    return made | {key: given[key] for key in ("name", "tool_call_id") if key in given and role == "observation"}


def _content(content: Any, role: str, what: str, calls: Any, thought: Any) -> str:
    if not content and (calls or thought is not None):
        return ""
    system, turns = _READER.conversation([{"role": role, "content": content}], role=role, what=what)
    return turns[0]["content"] if turns else system or ""


def _calls_of(content: Any) -> Any:
    try:
        return json.loads(content) if isinstance(content, str) else content
    except ValueError:
        raise UnreadableRow("a call of a tool is text that is not JSON") from None


class Writer:
    """Writer of rows by a chat template.

    Args:
        tokenizer: the policy's tokenizer.
        chat_template: the template's text.
    """

    def __init__(self, tokenizer: Any, chat_template: str) -> None:
        self._tokenizer, self._text = tokenizer, chat_template

    def write(self, row: Row) -> tuple[dict[str, str], list[str]]:
        """Write a row.

        Returns:
            ``prompt``, ``chosen`` and ``rejected`` as text; and what of the row the template does not write, which may
            be meant so.

        Raises:
            UnreadableRow: if the template cannot write the row, or does not write its calls of tools.
        """
        before = self._rendered(row.prompt, row.tools, generation=False)
        opened = self._rendered(row.prompt, row.tools, generation=True)
        whole = [
            self._rendered([*row.prompt, side], row.tools, generation=False) for side in (row.chosen, row.rejected)
        ]
        # A start of the turn that the template writes for generation only (an open thought) is not part of a row.
        prompt = opened if all(text.startswith(opened) for text in whole) else _common_start([opened, *whole])
        if not prompt.startswith(before):
            raise UnreadableRow("the chat template writes the prompt in another way before a response")
        sides = [text[len(prompt) :].rstrip() for text in whole]
        calls = [*zip((row.chosen, row.rejected), sides, strict=True)]
        _check_calls([*((message, prompt) for message in row.prompt), *calls])
        unwritten = [] if _names(row.tools, prompt) else [TOOLS_UNWRITTEN]
        thoughts = [side.get("reasoning_content", "").strip() for side in (row.chosen, row.rejected)]
        if any(thought not in text for thought, text in zip(thoughts, sides, strict=True)):
            unwritten.append(THOUGHT_UNWRITTEN)
        return {"prompt": prompt, "chosen": sides[0], "rejected": sides[1]}, unwritten

    def write_prompt(self, messages: Sequence[Message], tools: list[Any] | None) -> str:
        """Write a prompt up to the start of the response, as a policy continues it.

        Args:
            messages: its messages.
            tools: descriptions of tools, or None.

        Raises:
            UnreadableRow: if the template cannot write the messages, or does not write their calls of tools.
        """
        prompt = self._rendered(messages, tools, generation=True)
        _check_calls([(message, prompt) for message in messages])
        return prompt

    def _rendered(self, messages: Sequence[Message], tools: Any, *, generation: bool) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages), tools=tools, chat_template=self._text, add_generation_prompt=generation,
                    tokenize=False,
                )
            )  # fmt: skip
        except Exception as error:  # templates raise anything
            raise UnreadableRow(f"the chat template cannot write it ({type(error).__name__})") from error

    def without_end(self, response: str) -> str:
        """Return the text of a written response without the special tokens after it."""
        ends = [token for token in self._tokenizer.all_special_tokens if token]
        while (end := next((token for token in ends if response.endswith(token)), None)) is not None:
            response = response.removesuffix(end).rstrip()
        return response


def _check_calls(written: Iterable[tuple[Message, str]]) -> None:
    """Raise if the text of a message lacks its calls of tools."""
    for message, text in written:
        if not _names(message.get("tool_calls"), text):
            raise UnreadableRow("the chat template does not write calls of tools; set one that does")


def _common_start(texts: Sequence[str]) -> str:
    """Return the common beginning of texts up to its last line break or end of a tag."""
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    common = "".join(letters[0] for letters in same)
    return common[: max(common.rfind("\n"), common.rfind(">")) + 1]


def _names(functions: Any, text: str) -> bool:
    """Return whether the names of functions are in a text."""
    return all(str((item.get("function") or item).get("name")) in text for item in functions or [])
