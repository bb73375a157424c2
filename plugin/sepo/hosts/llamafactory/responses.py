"""The policy's tokens of a response as the host makes them: whole, before truncation, and placed in its text."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from llamafactory.data.processor import PairwiseDatasetProcessor

from sepo.selection import SIDES
from sepo.text.projection import TokenSpans
from sepo.text.token_texts import TokenTexts
from sepo.training.selection_columns import IGNORE_INDEX

Example = Mapping[str, Any]
"""A row as the host aligns it: ``_prompt``, ``_response``, ``_system``, ``_tools`` and its media."""


class PolicyResponses:
    """Responses in the policy's tokens, by the host's own encoding.

    Args:
        template: the host's.
        tokenizer: the policy's.
        processor: the host's for images, or None.
        data_args: the host's data arguments.
    """

    def __init__(self, template: Any, tokenizer: Any, *, processor: Any, data_args: Any) -> None:
        uncut = copy.copy(data_args)
        uncut.cutoff_len = 2**30
        self._host = PairwiseDatasetProcessor(template, tokenizer, processor, uncut)
        self._texts = TokenTexts(tokenizer)

    def whole(self, example: Example, side: str) -> list[int]:
        """The response's tokens as they are before truncation."""
        one = self._host.preprocess_dataset({name: [value] for name, value in example.items()})
        return [label for label in one[f"{side}_labels"][0] if label != IGNORE_INDEX]

    def spans(self, example: Example, kept: Sequence[int], side: str) -> TokenSpans | None:
        """Place a response's tokens in its text.

        Args:
            example: the row.
            kept: the tokens that truncation left.
            side: ``chosen`` or ``rejected``.

        Returns:
            The places of the whole response's tokens, of which ``kept`` are the first; None where they do not spell
            the text.
        """
        text = example["_response"][SIDES.index(side)]["content"]
        spans = self._texts.spans(kept, text)
        # Truncated: the text is spelled by the whole response only.
        return self._texts.spans(self.whole(example, side), text) if spans is None else spans

    def place(self, conversation: Mapping[str, Any], kept: Sequence[int], side: str) -> TokenSpans | None:
        """:meth:`spans` for a row of which the conversation was kept."""
        return self.spans(example_row(conversation), kept, side)


def example_row(conversation: Mapping[str, Any]) -> dict[str, Any]:
    """A conversation as the row that the host made it of."""
    answers = [{"role": "assistant", "content": text} for text in conversation["answers"]]
    media: dict[str, list[Any]] = {f"_{name}": [] for name in ("images", "videos", "audios")}
    return {
        "_prompt": conversation["messages"],
        "_response": answers,
        "_system": conversation["system"],
        "_tools": conversation["tools"],
        **media,
    }
