"""Response tokens of the policy as the host encodes them: before truncation, and aligned to the text."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from llamafactory.data.formatter import FunctionFormatter
from llamafactory.data.processor import PairwiseDatasetProcessor
from llamafactory.data.template import Llama2Template

from sepo.selection import SIDES
from sepo.text.projection import TokenSpans
from sepo.text.template_tokens import TemplateTokens, template_tokens
from sepo.text.token_texts import TokenTexts
from sepo.training.selection_columns import IGNORE_INDEX

Example = Mapping[str, Any]
"""A row with the host's aligned columns: ``_prompt``, ``_response``, ``_system``, ``_tools`` and its media."""


class PolicyResponses:
    """Encoder of responses in the policy's tokens, by the host's own encoding.

    Args:
        template: the host's template.
        tokenizer: the policy's tokenizer.
        processor: the host's processor of images, or None.
        data_args: the host's data arguments.
    """

    def __init__(self, template: Any, tokenizer: Any, *, processor: Any, data_args: Any) -> None:
        uncut = copy.copy(data_args)
        uncut.cutoff_len = 2**30
        self._host = PairwiseDatasetProcessor(template, tokenizer, processor, uncut)
        self._template, self._texts = template, TokenTexts(tokenizer)

    def whole(self, example: Example, side: str) -> list[int]:
        """Return all tokens of the response, without truncation."""
        one = self._host.preprocess_dataset({name: [value] for name, value in example.items()})
        return [label for label in one[f"{side}_labels"][0] if label != IGNORE_INDEX]

    def spans(self, example: Example, kept: Sequence[int], side: str) -> TokenSpans | None:
        """Align a response's tokens to its text.

        Args:
            example: the row.
            kept: the tokens that truncation kept.
            side: ``chosen`` or ``rejected``.

        Returns:
            The character spans of all tokens of the response, of which ``kept`` are the first; None if the tokens do
            not decode to the text.
        """
        text = response_text(example["_response"][SIDES.index(side)], self._template)
        spans = self._texts.spans(kept, text)
        # After truncation, only the tokens of the whole response decode to the text.
        return self._texts.spans(self.whole(example, side), text) if spans is None else spans

    def place(self, conversation: Mapping[str, Any], kept: Sequence[int], side: str) -> TokenSpans | None:
        """Align like :meth:`spans`, for a row given by its stored conversation."""
        return self.spans(example_row(conversation), kept, side)


def response_text(turn: Mapping[str, str], template: Any) -> str:
    """Return a response as it is trained: calls of tools, which a row holds as JSON, as the template writes them, and
    without a thought that the template removes. Idempotent for a text.

    Args:
        turn: ``role`` and ``content`` of the response.
        template: the host's template.
    """
    text = turn["content"]
    if template.enable_thinking is False:
        text = template.remove_thought(text)
    if turn["role"] != "function":
        return text
    calls = FunctionFormatter(slots=["{{content}}"], tool_format=template.format_function.tool_format)
    words = {} if isinstance(template, Llama2Template) else {
        "thought_words": template.thought_words, "tool_call_words": template.tool_call_words
    }  # fmt: skip
    return str(calls.apply(content=text, **words)[0])


def example_row(conversation: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored conversation as the row of the host that it was made from."""
    responses = [{"role": "assistant", "content": text} for text in conversation["answers"]]
    media: dict[str, list[Any]] = {f"_{name}": [] for name in ("images", "videos", "audios")}
    return {
        "_prompt": conversation["messages"],
        "_response": responses,
        "_system": conversation["system"],
        "_tools": conversation["tools"],
        **media,
    }


def written_by_template(template: Any, tokenizer: Any) -> TemplateTokens:
    """Return the tokens that the host's template writes into every response: for example an empty thought if
    ``enable_thinking`` is true, and a line break after the end of turn.

    Args:
        template: the host's template.
        tokenizer: the policy's tokenizer, prepared by the host for the template.
    """

    def encode(text: str) -> list[int]:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": text}]
        _, ids = template.encode_oneturn(tokenizer, turns)
        return [*ids, tokenizer.eos_token_id] if template.efficient_eos else ids

    opening, closing = template.thought_words
    return template_tokens(
        encode,
        tokenizer,
        stop_ids=template.get_stop_token_ids(tokenizer),
        with_thought=f"{opening}a{closing}a",
    )
