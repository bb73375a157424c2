"""The policy's tokens of a response as the host makes them: whole, before truncation, and placed in its text."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from llamafactory.data.processor import PairwiseDatasetProcessor

from sepo.hosts.shared.rows import SIDES
from sepo.tokens.projection import TokenSpans
from sepo.training.collator import IGNORE_INDEX
from sepo.training.texts import TokenTexts

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
