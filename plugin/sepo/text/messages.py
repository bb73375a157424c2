"""Preference rows that are given as messages: the turns of the prompt and the two responses.

Messages have the form of OpenAI's API (``role``, ``content``, ``tool_calls``, ``reasoning_content``) or of ShareGPT
(``from``, ``value``). They are read as turns with the roles ``user``, ``assistant``, ``observation`` (the result of a
tool), ``function`` (calls of tools, as JSON) and ``system``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, NamedTuple, TypeVar

Turn = dict[str, str]
"""``role`` and ``content`` of one turn."""

T = TypeVar("T", bound=Mapping[str, Any])

ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "observation",
    "observation": "observation",
    "function": "observation",
    "ipython": "observation",
    "function_call": "function",
    "tool_call": "function",
}
"""Names of roles in data sets, and the roles that they stand for."""

_ANSWERING = ("assistant", "function")
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Fields of a message that hold a thought."""


class UnreadableRow(ValueError):
    """A row that cannot be trained on as its author meant it.

    The message is the reason. It contains nothing of the row's text, so that rows can be counted by it.
    """


@dataclass(frozen=True)
class TurnFormat:
    """Text that surrounds the parts of a turn.

    Attributes:
        thought_words: text before and after a thought.
        tool_call_words: text before and after calls of tools that follow other text.
        between_results: text between the results of several calls.
    """

    thought_words: tuple[str, str] = ("<think>\n", "\n</think>\n\n")
    tool_call_words: tuple[str, str] = ("<tool_call>", "</tool_call>")
    between_results: str = "\n"


class Pair(NamedTuple):
    """A preference row.

    Args:
        system: the system prompt of its messages, or None if they have none.
        prompt: the turns before the responses, which begin and end with a turn of ``user`` or ``observation``.
        chosen: the preferred response.
        rejected: the other response.
    """

    system: str | None
    prompt: list[Turn]
    chosen: Turn
    rejected: Turn


@dataclass(frozen=True)
class MessageReader:
    """Reader of messages.

    Args:
        role_key: name of the role's field, tried before ``role`` and ``from``.
        content_key: name of the content's field, tried before ``content`` and ``value``.
        roles: roles by their names in the data set; other names are looked up in ``ROLES``.
        format: text that surrounds thoughts, calls and results.
    """

    role_key: str | None = None
    content_key: str | None = None
    roles: Mapping[str, str] = field(default_factory=dict)
    format: TurnFormat = TurnFormat()

    def pair(self, *, prompt: Any, chosen: Any, rejected: Any) -> Pair:
        """Read a preference row.

        Args:
            prompt: text of the user, messages, or None.
            chosen: text, a message, or messages: the whole conversation, or what follows the prompt.
            rejected: likewise.

        Raises:
            UnreadableRow: the messages are not a prompt with two responses of one turn each.
        """
        before_system, before = self.conversation(prompt, role="user", what="the prompt")
        chosen_system, chosen_turns = self.conversation(chosen, role="assistant", what="chosen")
        rejected_system, rejected_turns = self.conversation(rejected, role="assistant", what="rejected")
        for name, turns in (("chosen", chosen_turns), ("rejected", rejected_turns)):
            if not turns:
                raise UnreadableRow(f"{name} is empty")
            if turns[-1]["role"] not in _ANSWERING:
                raise UnreadableRow(f"{name} ends with a turn of {turns[-1]['role']}")
        system = _one_system(before_system, chosen_system, rejected_system)
        prompt_turns, (response, other) = split_pair(before, chosen_turns, rejected_turns)
        check_turns([*prompt_turns, response])
        return Pair(system, prompt_turns, response, other)

    def conversation(self, value: Any, *, role: str, what: str) -> tuple[str | None, list[Turn]]:
        """Read text or messages as the content of the system turn, or None, and the other turns.

        Args:
            value: text of ``role``, one message, messages or their JSON, or None for no turns.
            role: role of a text.
            what: name of the value in reasons.

        Raises:
            UnreadableRow: a message cannot be read, or a system turn follows another turn.
        """
        if value is None:
            return None, []
        messages = [value] if isinstance(value, Mapping) else value
        if isinstance(value, str):
            messages = self._from_json(value)
            if messages is None:
                return None, [{"role": role, "content": value}]
        if not isinstance(messages, Sequence):
            raise UnreadableRow(f"{what} is {kind_of(value)}; text or messages are expected")
        turns: list[Turn] = []
        for message in messages:
            turn = self._turn(message, what)
            if turns and turn["role"] == turns[-1]["role"] == "observation":
                turns[-1]["content"] += self.format.between_results + turn["content"]
            else:
                turns.append(turn)
        system = turns.pop(0)["content"] if turns and turns[0]["role"] == "system" else None
        if any(turn["role"] == "system" for turn in turns):
            raise UnreadableRow("a system turn follows another turn")
        return system, turns

    def _from_json(self, text: str) -> list[Any] | None:
        """Return the messages that a text is the JSON of, as columns of CSV files are; None for any other text."""
        if not text.lstrip().startswith("[{"):
            return None
        try:
            messages = json.loads(text)
        except ValueError:
            return None
        keys = (self.role_key, *_ROLE_KEYS)
        found = all(isinstance(message, Mapping) and _first(message, keys) is not None for message in messages)
        return messages if found else None

    def _turn(self, message: Any, what: str) -> Turn:
        if not isinstance(message, Mapping):
            raise UnreadableRow(f"{what} has a message that is {kind_of(message)}; role and content are expected")
        name = _first(message, (self.role_key, *_ROLE_KEYS))
        role = self.roles.get(name) or ROLES.get(name) if isinstance(name, str) else None
        if role is None:
            raise UnreadableRow(f"{what} has a message with the role {_short(name)}")
        content = _first(message, (self.content_key, *_CONTENT_KEYS))
        if role not in _ANSWERING:
            return {"role": role, "content": _text(content, what, as_json=role == "observation")}
        thought = _first(message, REASONING_KEYS)
        legacy = message.get("function_call")
        # An object of another row's field may be one of nulls.
        calls = message.get("tool_calls") or (legacy if isinstance(legacy, Mapping) and any(legacy.values()) else None)
        if content is None and (calls or thought):
            content = ""
        text = _text(content, what, as_json=role == "function")
        if calls:
            role, text = "function", self._with_calls(text, calls)
        return {"role": role, "content": self._with_thought(text, thought, what)}

    def _with_calls(self, text: str, calls: Any) -> str:
        called = json.dumps(
            [tool_call(call) for call in ([calls] if isinstance(calls, Mapping) else calls)], ensure_ascii=False
        )
        if not text.strip():
            return called
        opening, closing = self.format.tool_call_words
        return f"{text}{'' if text.endswith(chr(10)) else chr(10)}{opening}{called}{closing}"

    def _with_thought(self, text: str, thought: Any, what: str) -> str:
        if thought is None:
            return text
        if not isinstance(thought, str):
            raise UnreadableRow(f"{what} has reasoning that is {kind_of(thought)}; text is expected")
        opening, closing = self.format.thought_words
        if not thought.strip() or opening.strip() in text:  # the content repeats it
            return text
        # The words have the line breaks, as a model's own template writes them.
        thought = thought.strip("\n") if opening.endswith("\n") else thought
        return f"{opening}{thought}{closing}{text.lstrip(chr(10)) if closing.endswith(chr(10)) else text}"


def check_turns(turns: Sequence[Turn]) -> None:
    """Raise if turns do not alternate between user (or results of tools) and assistant, beginning with the user.

    Raises:
        UnreadableRow: naming the two roles that follow each other, or the first role.
    """
    for index, turn in enumerate(turns):
        if (turn["role"] in _ANSWERING) == bool(index % 2):
            continue
        if index:
            raise UnreadableRow(f"a turn of {turn['role']} follows one of {turns[index - 1]['role']}")
        raise UnreadableRow(f"the conversation begins with a turn of {turn['role']}")


def without_nulls(value: Any) -> Any:
    """Return a JSON value without the null fields of its objects.

    A column of objects has the fields of all its rows, null in the rows that lack them.
    """
    if isinstance(value, Mapping):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def tools_text(value: Any) -> str:
    """Return the descriptions of tools as JSON text; empty if there are none, so that no template writes a tools part.

    Args:
        value: JSON text, which is returned unchanged unless it is of an empty value, or a list of descriptions (objects
            or JSON text), or one object.

    Raises:
        UnreadableRow: it is something else.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return "" if _is_empty_json(value) else value
    tools = [value] if isinstance(value, Mapping) else value
    if not isinstance(tools, list):
        raise UnreadableRow(f"tools is {kind_of(value)}; a list or JSON text is expected")
    try:
        read = [json.loads(tool) if isinstance(tool, str) else without_nulls(tool) for tool in tools]
    except ValueError:
        raise UnreadableRow("a tool is described by text that is not JSON") from None
    return json.dumps(read, ensure_ascii=False) if read else ""


def _is_empty_json(text: str) -> bool:
    """Return whether a text is blank, or the JSON of null or of an empty list or object."""
    try:
        return not text.strip() or not json.loads(text)
    except ValueError:
        return False


def kind_of(value: Any) -> str:
    """Return what a JSON value is, with an article, for messages."""
    if value is None:
        return "missing"
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "an object" if isinstance(value, Mapping) else "a list" if isinstance(value, list) else "of another type"


def _first(message: Mapping[str, Any], names: Sequence[str | None]) -> Any:
    return next((message[name] for name in names if name is not None and message.get(name) is not None), None)


def _short(name: Any) -> str:
    return repr(name if name is None or (isinstance(name, str) and len(name) <= 20) else "...")


def _text(content: Any, what: str, *, as_json: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        raise UnreadableRow(f"{what} has a message without content")
    if isinstance(content, list) and all(isinstance(part, Mapping) and "type" in part for part in content):
        other = next((part["type"] for part in content if part["type"] != "text"), None)
        if other is None:
            return "".join(str(part.get("text") or "") for part in content)
        raise UnreadableRow(f"{what} has a message with a part of type {_short(other)}; name media by columns")
    if as_json:
        return json.dumps(without_nulls(content), ensure_ascii=False)
    raise UnreadableRow(f"{what} has a message whose content is {kind_of(content)}; text is expected")


def tool_call(call: Any) -> dict[str, Any]:
    """Return the ``name`` and the ``arguments`` (an object) of a call of a tool, given with or without ``function``.

    Raises:
        UnreadableRow: it has no name, or its arguments are not an object or JSON text of one.
    """
    function = call.get("function") or call if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UnreadableRow("a tool call has no function with a name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except ValueError:
            raise UnreadableRow("the arguments of a tool call are text that is not JSON") from None
    else:
        arguments = without_nulls(arguments or {})
    if not isinstance(arguments, dict):
        raise UnreadableRow(f"the arguments of a tool call are {kind_of(arguments)}; an object is expected")
    return {"name": function["name"], "arguments": arguments}


def _one_system(before: str | None, chosen: str | None, rejected: str | None) -> str | None:
    given = {text for text in (before, chosen, rejected) if text is not None}
    if len(given) > 1 or (before is None and (chosen is None) != (rejected is None)):
        raise UnreadableRow("chosen and rejected have different system turns")
    return next(iter(given), None)


def split_pair(before: list[T], chosen: list[T], rejected: list[T]) -> tuple[list[T], tuple[T, T]]:
    """Split two conversations into the prompt that they share and their last turns.

    Args:
        before: the turns of the prompt, if they are given apart; each turn has ``role`` and ``content``.
        chosen: the preferred conversation, whole or only what follows the prompt.
        rejected: the other one.

    Raises:
        UnreadableRow: they are not a prompt with two responses of one turn each.
    """
    return _split(*_whole(before, chosen, rejected))


def _whole(before: list[T], chosen: list[T], rejected: list[T]) -> tuple[list[T], list[T]]:
    """Return both conversations from their first turn on."""
    responses = [side[0]["role"] in _ANSWERING for side in (chosen, rejected)]
    if responses[0] != responses[1]:
        raise UnreadableRow("one of chosen and rejected is a whole conversation, the other one is not")
    if not responses[0]:
        return _continued(before, chosen), _continued(before, rejected)
    if not before:
        raise UnreadableRow("there is no prompt")
    return [*before, *chosen], [*before, *rejected]


def _continued(before: list[T], whole: list[T]) -> list[T]:
    if whole[: len(before)] == before:
        return whole
    if before[-1]["role"] in _ANSWERING:
        return [*before, *whole]
    asked = [turn["content"].strip() for turn in whole if turn["role"] == "user"]
    if len(before) == 1 and (before[0]["content"].strip() in asked or not before[0]["content"].strip()):
        return whole
    raise UnreadableRow("the prompt is not the beginning of chosen and rejected")


def _split(chosen: list[T], rejected: list[T]) -> tuple[list[T], tuple[T, T]]:
    """Return the turns that both conversations begin with, and their last turns."""
    longest = min(len(chosen), len(rejected)) - 1
    both = zip(chosen[:longest], rejected[:longest], strict=True)
    common = len(list(takewhile(lambda pair: pair[0] == pair[1], both)))
    if common and len(chosen) == len(rejected) == common + 1:
        return chosen[:common], (chosen[-1], rejected[-1])
    if not common or chosen[common]["role"] not in _ANSWERING or rejected[common]["role"] not in _ANSWERING:
        raise UnreadableRow("chosen and rejected have different prompts")
    raise UnreadableRow(
        "chosen and rejected differ before their last turn; a response is one turn, so end both at the first turn that "
        "differs"
    )
