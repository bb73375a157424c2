"""The run's chat template, for T-REG's prompts, and conversations of rows whose messages are plain text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sepo.errors import SepoError


def template_text(cfg: Any, tokenizer: Any, *, entry: Mapping[str, Any] | None = None) -> str:
    """Return the text of the run's chat template, or of a data set's own.

    Args:
        cfg: Axolotl's config.
        tokenizer: the policy's tokenizer.
        entry: the data set's entry in the config; None for the run's template.
    """
    from axolotl.utils.chat_templates import get_chat_template_from_config

    return str(get_chat_template_from_config(cfg, ds_cfg=entry, tokenizer=tokenizer))


def prompt_tokens(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a rendered prompt, without the bos that the tokenizer adds to that of the template."""
    ids = list(tokenizer(text)["input_ids"])
    twice = tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2
    return ids[1:] if twice else ids


class ChatTemplate:
    """The run's chat template, with the interface of a host's template that T-REG's prompts use.

    Args:
        cfg: Axolotl's config.
        tokenizer: the policy's tokenizer.
    """

    def __init__(self, cfg: Any, tokenizer: Any) -> None:
        self._cfg, self._own = cfg, tokenizer
        self._text: str | None = None

    def encode_oneturn(self, tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> tuple[list[int], list[int]]:
        """Encode the user's turn and the start of the assistant's turn as token ids; the second result is empty.

        Args:
            tokenizer: the policy's tokenizer.
            messages: the user's turn and the assistant's, whose content is not encoded.
        """
        if self._text is None:
            self._text = template_text(self._cfg, self._own)
        prompt = tokenizer.apply_chat_template(
            [dict(messages[0])], chat_template=self._text, add_generation_prompt=True, tokenize=False
        )
        return prompt_tokens(tokenizer, prompt), []


def check_types(datasets: Iterable[Any], reader: tuple[str, str]) -> None:
    """Raise if the rows of a data set are not rendered from conversations.

    Args:
        datasets: the config's entries.
        reader: the feature that needs conversations and the alternative to it, ``QUOTED`` or ``READ``.

    Raises:
        SepoError: If a data set is of another type; the message gives the type.
    """
    for item in datasets:
        kind = item.get("type") if isinstance(item, Mapping) else None
        if not is_conversation(kind):
            raise SepoError(
                f"a data set has the type {kind}, and {reader[0]} the conversation, which only "
                f"chat_template.default and chat_template.argilla_chat preserve; use one of them, or "
                f"{reader[1].removesuffix(', or text data')}."
            )


def is_conversation(kind: Any) -> bool:
    """Return whether the rows of a data set of this type are conversations."""
    return str(kind).startswith("chat_template")


def conversation(sample: Mapping[str, Any], *, rows: Mapping[str, Any], whole: bool) -> dict[str, Any]:
    """Return the conversation of a row before rendering.

    Args:
        sample: the row.
        rows: the data set's entry in the config: names of fields, roles and properties.
        whole: whether both responses are whole conversations (``argilla_chat``).

    Returns:
        ``messages`` (the prompt's turns), ``answers`` (the chosen and the rejected response), ``system`` and ``tools``.
    """
    names = rows.get("message_property_mappings") or {"role": "role", "content": "content"}
    roles = {old: new for new, olds in (rows.get("roles") or {}).items() for old in olds}

    def turn(message: Any, role: str) -> dict[str, str]:
        if isinstance(message, str):
            return {"role": role, "content": message}
        name = message[names["role"]]
        return {"role": roles.get(name, name), "content": message[names["content"]]}

    responses = [sample[rows.get(f"field_{side}") or side] for side in ("chosen", "rejected")]
    prompt = responses[0][:-1] if whole else sample[rows.get("field_messages") or "messages"]
    turns = [turn(prompt, "user")] if isinstance(prompt, str) else [turn(message, "user") for message in prompt]
    system = [message["content"] for message in turns if message["role"] == "system"]
    ends = [response[-1] if isinstance(response, list) else response for response in responses]
    return {
        "messages": [message for message in turns if message["role"] != "system"],
        "answers": [turn(response, "assistant")["content"] for response in ends],
        "system": "\n".join(system),
        "tools": "",
    }
