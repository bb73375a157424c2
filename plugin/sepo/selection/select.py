"""Selection of the tokens of a response that enter the loss: the top (or bottom) share by score."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from sepo.errors import SepoError, nearest

Rule = Literal["floor", "quantile", "mean"]
RULES: tuple[str, ...] = get_args(Rule)

Count = Literal["ratio", "shorter"]
COUNTS: tuple[str, ...] = get_args(Count)


def select_tokens(
    scores: Tensor,
    mask: Tensor,
    *,
    ratio: float,
    largest: bool,
    rule: str = "floor",
    what: str = "response",
    ties: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Mark, in every response, the share ``ratio`` of its counted tokens with the most extreme scores.

    Rule ``floor`` (SePO, arXiv 2408.13518, Eq. 25, whose k % of a length need not be whole) keeps exactly
    n = max(1, floor(ratio * n_tokens + 1e-9)) tokens; among equal scores the earlier token wins. The 1e-9 makes
    0.3 of 10 tokens three and not two. Rule ``quantile`` (the Selective-DPO authors' implementation of Eq. 8) keeps
    every score that reaches the linearly interpolated (1 - ratio) quantile of the counted scores, so equal scores stay
    together and more than n tokens may be kept; with ``largest=False`` it keeps the scores that do not exceed the
    ``ratio`` quantile. Rule ``mean`` (ConfPO, arXiv 2506.08712, whose scores are probabilities) keeps every score
    strictly above the mean of the counted scores, or below it with ``largest=False``; it has no ratio, and keeps no
    token of a response whose scores are all equal.

    Neither the width of the padding nor its values (including NaN and infinities) change the result, and the selection
    of a response does not depend on its batch. No gradient flows.

    Args:
        scores: [B, T] any floating dtype; only read where ``mask`` is True. Half precision is compared in float32.
        mask: [B, T] bool, True where a response token counts.
        ratio: the share of counted tokens to keep, in (0, 1]; 1.0 keeps every counted token.
        largest: True keeps the highest scores, False the lowest.
        rule: ``floor``, ``quantile`` or ``mean``.
        what: name of a row in error messages, for example ``"rejected response"``.
        ties: [B, T] integers, only read where scores are equal: rule ``floor`` then keeps the token with the lowest
            number (``sepo.selection.ties``). None for the earlier token.
        counts: [B] integers, how many tokens rule ``floor`` keeps of each response, at most all, in place of the ratio.

    Returns:
        [B, T] bool, a subset of ``mask`` with at least one token in every row (rule ``mean``: possibly none).

    Raises:
        SepoError: if the ratio or rule is invalid, shapes or dtypes do not match, a row has no counted token (with the
            row in the message), or the score of a counted token is not finite (with row and position).

    Example:
        >>> scores = torch.tensor([[0.1, 0.9, 0.5, 0.9]])
        >>> select_tokens(scores, torch.ones(1, 4, dtype=torch.bool), ratio=0.25, largest=True)
        tensor([[False,  True, False, False]])
    """
    check_ratio(ratio)
    if rule not in RULES:
        raise SepoError(
            f"select rule is {rule!r}, expected one of {', '.join(RULES)}; write one of these."
            f"{nearest(str(rule), RULES)}"
        )
    scores, lengths = check_scores(scores, mask, what=what)
    if rule == "floor":
        kept = floor_counts(lengths, ratio) if counts is None else counts
        return _floor(scores, mask, kept, largest=largest, ties=ties)
    if rule == "mean":
        return _beyond_mean(scores, mask, lengths, largest=largest)
    return _quantile(scores, mask, lengths, ratio=ratio, largest=largest)


def check_scores(scores: Tensor, mask: Tensor, *, what: str = "response") -> tuple[Tensor, Tensor]:
    """Check the scores and the mask of a selection.

    Args:
        scores: [B, T] any floating dtype.
        mask: [B, T] bool, True where a response token counts.
        what: name of a row in error messages.

    Returns:
        The scores, detached, in float32 or wider and without negative zeros, and the counted tokens per row, [B].

    Raises:
        SepoError: see ``select_tokens``.
    """
    check_mask(mask, name=f"mask of the {what}s")
    if scores.shape != mask.shape:
        raise SepoError(
            f"scores of the {what}s have shape {list(scores.shape)}, expected that of the mask, {list(mask.shape)}: "
            "pass one score for every token position."
        )
    if not scores.is_floating_point():
        raise SepoError(
            f"scores of the {what}s have dtype {scores.dtype}, expected a floating dtype: pass scores.float()."
        )

    scores = scores.detach()
    counts = mask.sum(dim=-1)
    unusable = mask & ~torch.isfinite(scores)
    if bool((counts == 0).any() | unusable.any()):  # one device synchronization for both
        require_counted_tokens(mask, what=what)
        row, position = (int(index) for index in unusable.nonzero()[0])
        raise SepoError(
            f"the score of the {what} in row {row}, position {position} is {float(scores[row, position])}, expected a "
            "finite number on every counted token: score this row again, or mask the token."
        )

    # Adding 0.0 turns -0.0 into 0.0: the two are equal, but a sort by bit pattern (CUDA's radix sort) may order them.
    return scores.to(torch.promote_types(scores.dtype, torch.float32)) + 0.0, counts


def floor_count(n_tokens: int, ratio: float) -> int:
    """Return the number of tokens that rule ``floor`` keeps: max(1, floor(ratio * n_tokens + 1e-9))."""
    return max(1, math.floor(ratio * n_tokens + 1e-9))


def floor_counts(n_tokens: Tensor, ratio: float) -> Tensor:
    """Return ``floor_count`` of each response, [B] int64, from the numbers of their tokens, [B] integers."""
    return torch.floor(n_tokens.double() * ratio + 1e-9).long().clamp(min=1)


def check_ratio(ratio: float, *, name: str = "ratio") -> None:
    """Raise a SepoError that names the setting ``name`` if a selection ratio is outside (0, 1]."""
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 1:
        raise SepoError(
            f"{name} is {ratio!r}, expected a number in (0, 1]: write 0.3 for 30 % of the tokens, 1.0 for all of them."
        )


def check_mask(mask: Tensor, *, name: str) -> None:
    """Raise a SepoError with ``name`` in the message if a mask is not bool [B, T]."""
    if mask.dtype != torch.bool:
        raise SepoError(
            f"{name} has dtype {mask.dtype}, expected torch.bool: pass a comparison such as labels != -100."
        )
    if mask.dim() != 2:
        raise SepoError(f"{name} has shape {list(mask.shape)}, expected [B, T]: one row per response.")


def require_counted_tokens(mask: Tensor, *, what: str = "response") -> None:
    """Raise a SepoError that names the first row of ``mask`` [B, T] without a single True, if there is one."""
    empty = ~mask.any(dim=-1)
    if bool(empty.any()):
        row = int(empty.nonzero()[0, 0])
        raise SepoError(
            f"the {what} in row {row} has 0 counted tokens, expected at least 1: drop this pair, or raise the cutoff "
            "that truncated its response."
        )


def _floor(scores: Tensor, mask: Tensor, kept: Tensor, *, largest: bool, ties: Tensor | None) -> Tensor:
    # Counted scores are finite, so every masked position sorts behind every counted one.
    keys = scores.masked_fill(~mask, -math.inf if largest else math.inf)
    first = None if ties is None else ties.argsort(dim=-1, stable=True)
    keys = keys if first is None else keys.gather(-1, first)
    order = keys.argsort(dim=-1, descending=largest, stable=True)  # stable: the earlier of two equals comes first
    order = order if first is None else first.gather(-1, order)
    ranks = torch.arange(scores.shape[-1], device=scores.device)
    return torch.zeros_like(mask).scatter(-1, order, ranks < kept.unsqueeze(-1))


def _quantile(scores: Tensor, mask: Tensor, counts: Tensor, *, ratio: float, largest: bool) -> Tensor:
    # Not torch.quantile, which does not support bf16, more than 2**24 elements or rows of different lengths.
    # In float64 the comparison below is exact for float32 scores that equal their own quantile.
    wide = scores.double()
    ascending = wide.masked_fill(~mask, math.inf).sort(dim=-1).values
    position = ((1.0 - ratio if largest else ratio) * (counts - 1).double()).unsqueeze(-1)
    below, above = position.floor(), position.ceil()
    threshold = torch.lerp(ascending.gather(-1, below.long()), ascending.gather(-1, above.long()), position - below)
    reaches = wide >= threshold if largest else wide <= threshold
    return reaches & mask


_EQUAL = 1e-12
"""Scores within this relative distance of the mean count as equal to it, so that rounding selects none of equal scores
and the width of the padding, which changes the order of a sum, changes nothing."""


def _beyond_mean(scores: Tensor, mask: Tensor, counts: Tensor, *, largest: bool) -> Tensor:
    wide = scores.double().masked_fill(~mask, 0.0)
    mean = (wide.sum(dim=-1) / counts).unsqueeze(-1)
    margin = _EQUAL * wide.abs().amax(dim=-1, keepdim=True)
    return (wide > mean + margin if largest else wide < mean - margin) & mask
