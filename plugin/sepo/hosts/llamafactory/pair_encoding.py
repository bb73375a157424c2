"""Encoding of pairs by the host, with each response after its own prompt, and the tokens that truncation cuts off.

See ../PATCHES.md for the names that are rebound.
"""

from __future__ import annotations

import contextlib
import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from datasets import Dataset
from llamafactory.data import loader
from llamafactory.data.processor import PairwiseDatasetProcessor
from llamafactory.data.processor.processor_utils import infer_seqlen

from sepo import __version__
from sepo.selection import SIDES
from sepo.training.row_losses import RowLosses
from sepo.training.selection_columns import IGNORE_INDEX

CUT = "sepo_cut"
"""Row column: the number of tokens that truncation cut off the prompt, the chosen and the rejected response."""

Encoded = tuple[list[int], list[int], list[int], list[int]]
"""Token ids and labels of the chosen row, and those of the rejected row."""


@dataclass
class PairProcessor(PairwiseDatasetProcessor):
    """The host's pairwise processor, with the column ``CUT``, and with the prompt that each response has by itself.

    With ``enable_thinking: null`` the templates of reasoning models write an empty thought at the end of the prompt of
    a response without a thought. The host gives both responses the prompt of the chosen one; here each has its own, so
    that a thought neither follows an empty one nor misses it. The sides are cut together, as the host does: the longest
    prompt and the longest response determine how much remains.
    """

    sepo_version: str = __version__  # part of the fingerprint by which the host's cache is found

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Tokenize a batch of aligned rows."""
        columns: dict[str, list[Any]] = defaultdict(list)
        for index in range(len(examples["_prompt"])):
            row = {name: [values[index]] for name, values in examples.items()}
            made = super().preprocess_dataset(row)
            if not made.get("chosen_input_ids"):  # the host drops invalid rows
                continue
            for name, values in made.items():
                columns[name] += values
            labels = [made[f"{side}_labels"][0] for side in SIDES]
            columns[CUT].append(self._cut({name: values[0] for name, values in row.items()}, labels))
        return columns

    def _encode_data_example(self, prompt: Any, response: Any, *args: Any, **kwargs: Any) -> Encoded:
        made: Encoded = super()._encode_data_example(prompt, response, *args, **kwargs)
        if self.template.enable_thinking is not None:
            return made
        sides = [self._alone(prompt, turn, *args, **kwargs) for turn in response[:2]]
        if sides[0][0] == sides[1][0]:
            return made
        longest = (max(len(side[part]) for side in sides) for part in (0, 1))
        prompt_length, response_length = infer_seqlen(*longest, self.data_args.cutoff_len)
        rows: list[list[int]] = []
        for before, answer in sides:
            kept_prompt, kept = before[:prompt_length], answer[:response_length]
            rows += [[*kept_prompt, *kept], [*[IGNORE_INDEX] * len(kept_prompt), *kept]]
        return rows[0], rows[1], rows[2], rows[3]

    def _alone(self, prompt: Any, turn: Any, *args: Any, **kwargs: Any) -> tuple[list[int], list[int]]:
        """Return the tokens of the prompt and of the response of one side, encoded as a pair with itself, not cut."""
        ids, labels, _, _ = self._uncut._encode_data_example(prompt, [turn, turn], *args, **kwargs)
        start = labels.count(IGNORE_INDEX)
        return ids[:start], ids[start:]

    def _cut(self, row: Mapping[str, Any], labels: list[list[int]]) -> list[int]:
        """Return the value of ``CUT``. Only rows that fill the cutoff are encoded again."""
        prompts = [side.count(IGNORE_INDEX) for side in labels]
        responses = [len(side) - prompt for side, prompt in zip(labels, prompts, strict=True)]
        if max(prompts) + max(responses) < self.data_args.cutoff_len:
            return [0, 0, 0]
        media = ([*(row[f"_{name}"] or [])] for name in ("images", "videos", "audios"))
        given = (row["_system"], row["_tools"], *media)
        whole = [self._alone(row["_prompt"], turn, *given) for turn in row["_response"][:2]]
        # The host gives both sides the prompt of the chosen one, unless thinking is neither on nor off.
        cut = [len(before) - prompt for (before, _), prompt in zip(whole, prompts, strict=True)]
        cut_prompt = max(cut) if self.template.enable_thinking is None else cut[0]
        return [cut_prompt, *(len(answer) - kept for (_, answer), kept in zip(whole, responses, strict=True))]

    @cached_property
    def _uncut(self) -> PairwiseDatasetProcessor:
        data_args = copy.copy(self.data_args)
        data_args.cutoff_len = 2**30
        return PairwiseDatasetProcessor(self.template, self.tokenizer, self.processor, data_args)


def joined_processor(kind: type[PairwiseDatasetProcessor], other: type[PairwiseDatasetProcessor]) -> type:
    """Return a processor that does what both do.

    Args:
        kind: a subclass of the host's processor that calls ``preprocess_dataset`` of the next class row by row.
        other: the host's processor, or another subclass, which becomes that next class.
    """
    return kind if other is PairwiseDatasetProcessor else type(kind.__name__, (kind, other), {})


@contextlib.contextmanager
def pairs_encoded() -> Iterator[None]:
    """Make the host's ``get_dataset`` encode pairs with ``PairProcessor`` inside the context."""
    before = loader.PairwiseDatasetProcessor
    loader.PairwiseDatasetProcessor = PairProcessor
    try:
        yield
    finally:
        loader.PairwiseDatasetProcessor = before


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
