"""Converter of the format `messages`: preference rows whose responses are lists of messages.

It also reads the rows of the formats `openai` and `sharegpt` in sepo's stages (`rows.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llamafactory.data.converter import DATASET_CONVERTERS, DatasetConverter, register_dataset_converter
from llamafactory.data.parser import DatasetAttr
from llamafactory.data.template import TEMPLATES
from llamafactory.extras import logging

from sepo import __version__
from sepo.text.messages import MessageReader, Turn, TurnFormat, UnreadableRow, check_turns, kind_of, tools_text

logger = logging.get_logger(__name__)

MESSAGES = "messages"
"""Name of the format in dataset_info.json."""

SYSTEM_UNUSED = "the column of system prompts is not used, as the messages have a system turn"

_RESULT = re.compile(r"(<[^<>]*tool_response[^<>]*>\s*)\{\{content\}\}(\s*<[^<>]*tool_response[^<>]*>)")


def register() -> None:
    """Register the format with the host. Idempotent."""
    if MESSAGES not in DATASET_CONVERTERS:
        register_dataset_converter(MESSAGES, MessagesConverter)


@dataclass(frozen=True)
class MessageColumns:
    """Columns of a data set of messages; None for those that it does not have."""

    prompt: str | None
    chosen: str
    rejected: str
    system: str | None
    tools: str | None


def message_columns(attributes: DatasetAttr, present: Any) -> MessageColumns:
    """Return the columns of a data set, by the names in its entry or by the usual ones.

    Args:
        attributes: the entry in dataset_info.json.
        present: the columns that its rows have.
    """
    prompts = (attributes.messages, attributes.prompt)
    if attributes.formatting == MESSAGES:
        # A column `messages` is often the chosen conversation, so that it is read only if it is named.
        prompt = next((name for name in (*prompts, "prompt") if name is not None and name in present), None)
        system, tools = (
            name or (default if default in present else None)
            for name, default in ((attributes.system, "system"), (attributes.tools, "tools"))
        )
    else:
        prompt, system, tools = attributes.messages, attributes.system, attributes.tools
    return MessageColumns(prompt, attributes.chosen or "chosen", attributes.rejected or "rejected", system, tools)


def turn_format(template: Any) -> TurnFormat:
    """Return the text that a template of the host writes around thoughts, calls of tools and their results.

    Args:
        template: the template, or None for the words that most templates have.
    """
    if template is None:
        return TurnFormat()
    slots = "".join(slot for slot in template.format_observation.slots if isinstance(slot, str))
    results = _RESULT.search(slots)
    between = "\n"
    if results is not None:
        opening, closing = results.groups()
        between = f"{closing}{chr(10) if opening.endswith(chr(10)) else ''}{opening}"
    return TurnFormat(tuple(template.thought_words), tuple(template.tool_call_words), between)


@dataclass
class MessagesConverter(DatasetConverter):
    """Converter of messages to the host's columns; a row that cannot be read is logged and dropped, as the host does.

    Args:
        dataset_attr: the entry in dataset_info.json.
        data_args: the host's data arguments.
        template: the run's template; by default the one that the data arguments name.
    """

    template: Any = None
    sepo_version: str = __version__  # part of the fingerprint by which the host's cache is found

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        """Convert a row."""
        try:
            return self.converted(example)[0]
        except UnreadableRow as error:
            logger.warning_rank0(f"Skipping a row of {self.dataset_attr}: {error}.")
            return self._row(example, prompt=[], responses=[], system="", tools="")

    def converted(self, example: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """Convert a row, and return it with a phrase about what of it is not used, or the empty string.

        Raises:
            UnreadableRow: with the reason.
        """
        columns = message_columns(self.dataset_attr, example)
        reader = self._reader
        given = None if columns.prompt is None else example.get(columns.prompt)
        if self.dataset_attr.ranking:
            chosen, rejected = example.get(columns.chosen), example.get(columns.rejected)
            pair = reader.pair(prompt=given, chosen=chosen, rejected=rejected)
            system, prompt, responses = pair.system, pair.prompt, [pair.chosen, pair.rejected]
        else:
            system, turns = reader.conversation(given or example.get(MESSAGES), role="user", what="the conversation")
            check_turns(turns)
            if len(turns) < 2 or len(turns) % 2:
                raise UnreadableRow("the conversation does not end with a turn of the assistant")
            prompt, responses = turns[:-1], turns[-1:]
        own = "" if columns.system is None else example.get(columns.system) or ""
        if not isinstance(own, str):
            raise UnreadableRow(f"the system prompt is {kind_of(own)}; text is expected")
        tools = tools_text(None if columns.tools is None else example.get(columns.tools))
        row = self._row(
            example, prompt=prompt, responses=responses, system=own if system is None else system, tools=tools
        )
        return row, SYSTEM_UNUSED if system is not None and own and own != system else ""

    @property
    def _reader(self) -> MessageReader:
        attributes = self.dataset_attr
        tags = {
            attributes.user_tag: "user",
            attributes.assistant_tag: "assistant",
            attributes.observation_tag: "observation",
            attributes.function_tag: "function",
            attributes.system_tag: "system",
        }
        template = self.template or TEMPLATES.get(self.data_args.template)
        roles = {name: role for name, role in tags.items() if name is not None}
        return MessageReader(attributes.role_tag, attributes.content_tag, roles, turn_format(template))

    def _row(
        self, example: Mapping[str, Any], *, prompt: list[Turn], responses: list[Turn], system: str, tools: str
    ) -> dict[str, Any]:
        media = {
            f"_{name}": self._find_medias(example[column]) if column else None
            for name, column in (
                ("images", self.dataset_attr.images),
                ("videos", self.dataset_attr.videos),
                ("audios", self.dataset_attr.audios),
            )
        }
        return {"_prompt": prompt, "_response": responses, "_system": system, "_tools": tools, **media}
