"""Encoding of pairs by the host, with each response after its own prompt, and the tokens that truncation cuts off.

See ../PATCHES.md for the names that are rebound.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from datasets import Dataset
from llamafactory.data.processor import PairwiseDatasetProcessor
from llamafactory.data.processor.processor_utils import infer_seqlen

from sepo.hosts.llamafactory.row_processor import RowProcessor, processed_by
from sepo.training.row_losses import RowLosses
from sepo.training.selection_columns import IGNORE_INDEX

CUT = "sepo_cut"
"""Row column: the number of tokens that truncation cut off the prompt, the chosen and the rejected response."""

Encoded = tuple[list[int], list[int], list[int], list[int]]
"""Token ids and labels of the chosen row, and those of the rejected row."""


@dataclass
class PairProcessor(RowProcessor):
    """The host's pairwise processor, with the column ``CUT``, and with the prompt that each response has by itself.

    With ``enable_thinking: null`` the templates of reasoning models write an empty thought at the end of the prompt of
    a response without a thought. The host gives both responses the prompt of the chosen one; here each has its own, so
    that a thought neither follows an empty one nor misses it.

    Rows are encoded once without a cutoff, and then cut as the host does, both sides together: the longest prompt and
    the longest response determine how much remains.
    """

    _cut: list[int] = field(default_factory=list, init=False)
    """The value of ``CUT`` of the row that was encoded last."""

    def more_columns(self, row: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
        """Return the column ``CUT``."""
        return {**super().more_columns(row, made), CUT: self._cut}

    def _encode_data_example(self, prompt: Any, response: Any, *args: Any, **kwargs: Any) -> Encoded:
        sides = self._sides(prompt, response, *args, **kwargs)
        longest = (max(len(side[part]) for side in sides) for part in (0, 1))
        prompt_length, response_length = infer_seqlen(*longest, self.data_args.cutoff_len)
        rows: list[list[int]] = []
        for before, answer in sides:
            kept_prompt, kept = before[:prompt_length], answer[:response_length]
            rows += [[*kept_prompt, *kept], [*[IGNORE_INDEX] * len(kept_prompt), *kept]]
        cut_prompt = max(max(0, len(before) - prompt_length) for before, _ in sides)
        self._cut = [cut_prompt, *(max(0, len(answer) - response_length) for _, answer in sides)]
        return rows[0], rows[1], rows[2], rows[3]

    def _may_differ(self, response: Any) -> bool:
        """Return whether the prompts of the two responses may differ: if only one of them has a thought."""
        if self.template.enable_thinking is not None:
            return False
        words = [word.strip() for word in self.template.thought_words]
        chosen, rejected = (any(word in turn["content"] for word in words) for turn in response[:2])
        return bool(chosen != rejected)

    def _sides(self, prompt: Any, response: Any, *args: Any, **kwargs: Any) -> list[tuple[list[int], list[int]]]:
        """Return the tokens of the prompt and of the response of both sides, not cut."""
        chosen, chosen_labels, rejected, rejected_labels = self._uncut._encode_data_example(
            prompt, response, *args, **kwargs
        )
        if self._may_differ(response):  # the host takes the prompt of the first response
            rejected, rejected_labels, _, _ = self._uncut._encode_data_example(
                prompt, [response[1], response[0]], *args, **kwargs
            )
        starts = [labels.count(IGNORE_INDEX) for labels in (chosen_labels, rejected_labels)]
        return [(ids[:start], ids[start:]) for ids, start in zip((chosen, rejected), starts, strict=True)]

    @cached_property
    def _uncut(self) -> PairwiseDatasetProcessor:
        data_args = copy.copy(self.data_args)
        data_args.cutoff_len = 2**30
        return PairwiseDatasetProcessor(self.template, self.tokenizer, self.processor, data_args)


def pairs_encoded() -> AbstractContextManager[None]:
    """Make the host's ``get_dataset`` encode pairs with ``PairProcessor`` inside the context."""
    return processed_by(PairProcessor)


def without_cuts(dataset: Dataset, *, name: str, losses: RowLosses, tokenizer: Any, cutoff_len: int) -> Dataset:
    """Remove the column ``CUT``, and count the rows that truncation cut.

    Args:
        dataset: tokenized rows; rows that an earlier version or the host tokenized (``tokenized_path``) lack the column
            and are not counted.
        name: name of the data set in the log.
        losses: gets the numbers.
        tokenizer: decodes examples of the rows.
        cutoff_len: the host's cutoff.
    """
    if CUT not in dataset.column_names:
        return dataset
    cuts = dataset[CUT][:]
    for what, parts in (("the prompt", slice(0, 1)), ("a response", slice(1, 3))):
        rows = [index for index, cut in enumerate(cuts) if any(cut[parts])]
        if rows:
            text = tokenizer.decode(dataset[rows[0]]["chosen_input_ids"], skip_special_tokens=True)
            losses.add(name, "cut", f"{what} is cut at cutoff_len {cutoff_len}", len(rows), example=text)
    return dataset.remove_columns([CUT])
