"""Layout of many pairs in one row: each pair as prompt | chosen | rejected, without padding.

The common prefix of both responses is computed once: the prompt, and any first tokens that they share. Tokens on which
no wanted log-probability depends are left out: everything from the last wanted token of a response on (that token is
predicted, but predicts no wanted token).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

LAYOUT = "sepo_layout"
"""Keyword argument that passes a layout through a model's forward to its attention, also in checkpointed layers."""


@dataclass(frozen=True)
class PairSpan:
    """The location of one pair in the row: ``shared`` tokens from ``start``, then the other tokens of each response.

    A token of the chosen response attends to the shared tokens and to the chosen ones before it; one of the rejected
    response to the shared tokens and to the rejected ones before it. Position ids of both continue from the shared
    tokens.
    """

    start: int
    shared: int
    chosen: int
    rejected: int

    @property
    def split(self) -> int:
        """Index of the first token that only the rejected response has."""
        return self.start + self.shared + self.chosen

    @property
    def end(self) -> int:
        """Index after the pair's last token."""
        return self.split + self.rejected


@dataclass
class PairLayout:
    """The mapping of a padded batch to one row without padding.

    Args:
        spans: the pairs, in batch order.
        source: int64 [N], for each token of the row its index in the flattened batch [2B * T].
        position_ids: int64 [N].
        placed: int64 [2B, T], for each token of the batch its index in the row; -1 if it was left out.
        wanted: number of tokens whose log-probability is computed; None if unknown.
    """

    spans: tuple[PairSpan, ...]
    source: Tensor
    position_ids: Tensor
    placed: Tensor
    wanted: int | None = None
    masks: dict[object, Tensor] = field(default_factory=dict, repr=False)
    """Masks of ``sepo.forward.attention``, built by the first layer that needs them."""
    attended: int = 0
    """Number of attention layers that used this layout; without it, pairs would attend to each other."""
    parts: dict[int, Any] = field(default_factory=dict, repr=False)
    """Indices of ``sepo.forward.state_layers``, by the length of the convolution; built by the first layer."""
    carried: int = 0
    """Number of layers that carried their state into both responses."""

    @property
    def tokens(self) -> int:
        """Number of tokens in the row."""
        return self.source.numel()

    def to(self, device: torch.device) -> PairLayout:
        """Return the same layout with its tensors on a device."""
        source, position_ids, placed = (part.to(device) for part in (self.source, self.position_ids, self.placed))
        return PairLayout(self.spans, source, position_ids, placed, self.wanted)


def is_right_padded(attention_mask: Tensor) -> bool:
    """Return whether each row of an attention mask [R, T] is at least one 1, followed by zeros."""
    kept = attention_mask != 0
    return bool((kept[:, 0].all() & ~(kept[:, 1:] & ~kept[:, :-1]).any()).item())


def pair_layout(input_ids: Tensor, wanted: Tensor, *, attended: Tensor | None = None) -> PairLayout:
    """Lay the pairs of a right-padded batch into one row.

    >>> ids = torch.tensor([[1, 2, 3, 5, 6, 9], [1, 2, 3, 5, 7, 8]])  # a prompt of three, two responses of three
    >>> wanted = torch.tensor([[False, False, True, True, True], [False, False, True, False, True]])
    >>> layout = pair_layout(ids, wanted)
    >>> layout.spans, ids.flatten()[layout.source], layout.position_ids
    ((PairSpan(start=0, shared=4, chosen=1, rejected=1),), tensor([1, 2, 3, 5, 6, 7]), tensor([0, 1, 2, 3, 4, 4]))

    Args:
        input_ids: token ids on the CPU, [2B, T], the first B rows chosen.
        wanted: bool on the CPU, [2B, T - 1], shifted: entry t requests the token at position t + 1, so the row must
            hold the tokens up to t. A row without wanted tokens keeps its first token.
        attended: bool on the CPU, [2B, T], to keep all these tokens, also those on which no wanted one depends.

    Returns:
        The layout.
    """
    width, pairs = input_ids.shape[1], input_ids.shape[0] // 2
    lengths = needed_tokens(wanted) if attended is None else attended.sum(1).tolist()
    spans, source, position_ids = [], [], []
    placed = torch.full(input_ids.shape, -1)
    start = 0
    for pair in range(pairs):
        chosen, rejected = lengths[pair], lengths[pairs + pair]
        shared = _common_prefix(input_ids[pair, :chosen], input_ids[pairs + pair, :rejected])
        span = PairSpan(start, shared, chosen - shared, rejected - shared)
        at = torch.arange(max(chosen, rejected))
        source += [pair * width + at[:chosen], (pairs + pair) * width + at[shared:rejected]]
        position_ids += [at[:chosen], at[shared:rejected]]
        placed[pair, :chosen] = start + at[:chosen]
        placed[pairs + pair, :shared] = start + at[:shared]
        placed[pairs + pair, shared:rejected] = span.split + at[: rejected - shared]
        spans.append(span)
        start = span.end
    return PairLayout(tuple(spans), torch.cat(source), torch.cat(position_ids), placed, int(wanted.sum()))


def row_inputs(input_ids: Tensor, layout: PairLayout) -> dict[str, Any]:
    """Return the inputs of a model's forward for the row.

    Args:
        input_ids: token ids of the batch, [2B, T].
        layout: with its tensors on the same device.

    Returns:
        ``input_ids`` and ``position_ids`` [1, N], the layout for the attention, and a four-dimensional attention mask,
        which keeps models from building one and is not read by the attention over pairs.
    """
    return {
        "input_ids": input_ids.flatten()[layout.source][None],
        "position_ids": layout.position_ids[None],
        "attention_mask": torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device),
        LAYOUT: layout,
    }


def needed_tokens(wanted: Tensor) -> list[int]:
    """Return the number of first tokens of each row on which the wanted positions [R, T - 1] depend; at least one."""
    positions = torch.arange(1, wanted.shape[1] + 1)
    lengths: list[int] = torch.where(wanted, positions, 1).amax(1).tolist()
    return lengths


def _common_prefix(first: Tensor, second: Tensor) -> int:
    """Return the length of the common prefix of two 1-D tensors."""
    length = min(len(first), len(second))
    different = (first[:length] != second[:length]).nonzero()
    return int(different[0]) if len(different) else length


def token_groups(lengths: Sequence[int], budget: int, *, padded: bool = False) -> list[list[int]]:
    """Group pairs, in order, into rows of at most ``budget`` tokens; a longer pair has a row of its own.

    >>> token_groups([3, 4, 9, 1, 1], budget=8)
    [[0, 1], [2], [3, 4]]
    >>> token_groups([3, 4, 9, 1, 1], budget=7, padded=True)
    [[0], [1], [2], [3, 4]]

    Args:
        lengths: tokens of each pair.
        budget: maximum number of tokens of a group.
        padded: whether every pair of a group counts as long as the longest one.
    """
    groups: list[list[int]] = []
    for index, length in enumerate(lengths):
        if groups:
            together = [lengths[other] for other in groups[-1]] + [length]
            if (max(together) * len(together) if padded else sum(together)) <= budget:
                groups[-1].append(index)
                continue
        groups.append([index])
    return groups
