"""Conversations as text in a tokenizer's chat template."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from sepo.errors import SepoError

_DATE = datetime.datetime(2024, 7, 26)
"""Date passed to templates that write today's date (Llama 3's default), so that scores do not depend on the day."""

_ROLES = {"observation": "tool", "function": "assistant"}


class ChatRenderer:
    """Renderer of conversations in a tokenizer's chat template.

    Args:
        tokenizer: a transformers tokenizer.
        name: name of the model in error messages.
        chat_template: replaces the tokenizer's chat template; None to use that.
    """

    def __init__(self, tokenizer: Any, *, name: str, chat_template: str | None = None) -> None:
        self._tokenizer, self._name, self._chat_template = tokenizer, name, chat_template

    def text(self, messages: Sequence[Mapping[str, str]], *, system: str, tools: str) -> str:
        """Return a conversation as text, without a further turn being opened.

        Args:
            messages: the turns: ``role`` and ``content``.
            system: the system prompt, or the empty string.
            tools: the tools as JSON, or the empty string.

        Raises:
            SepoError: if the template rejects the conversation.
        """
        turns = [{**turn, "role": _ROLES.get(turn["role"], turn["role"])} for turn in messages]
        try:
            return self._rendered(turns, system, json.loads(tools) if tools else None)
        except Exception as error:  # templates can raise anything
            reason = str(error).strip().splitlines()[:1]
            raise SepoError(
                f"the chat template of {self._name} rejects the conversation that begins with "
                f"{turns[0]['content'][:60]!r}: {' '.join(reason) or type(error).__name__}. Remove the row, or set a "
                "template that accepts such turns in its tokenizer."
            ) from error

    def _rendered(self, turns: list[dict[str, str]], system: str, tools: Any) -> str:
        if not system:
            return self._applied(turns, tools)
        try:
            return self._applied([{"role": "system", "content": system}, *turns], tools)
        except TemplateError:  # raised by `raise_exception`, as in Gemma's template for a system turn
            # The system prompt is put before the first turn; any other error is raised again there.
            first = {**turns[0], "content": f"{system}\n\n{turns[0]['content']}"}
            return self._applied([first, *turns[1:]], tools)

    def _applied(self, turns: list[dict[str, str]], tools: Any) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                turns,
                tools=tools,
                chat_template=self._chat_template,
                tokenize=False,
                strftime_now=_DATE.strftime,
                date_string=_DATE.strftime("%d %b %Y"),
            )
        )
