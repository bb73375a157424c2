"""Order of tokens with equal scores, without preference for a position."""

from __future__ import annotations

import torch
from torch import Tensor

# Odd multipliers of the 64-bit finalizers of MurmurHash3 and SplitMix64, as signed numbers.
_FIRST, _SECOND, _THIRD = -0xAE502812AA7333, -0x3B314601E57A13AD, -0x61C8864680B583EB


def tie_order(token_ids: Tensor, mask: Tensor) -> Tensor:
    """Return a number per token by which tokens with equal live scores are ordered.

    With a reference that equals the policy, all alignment scores are zero, and the first tokens of each response would
    be selected. The numbers are a hash of the token's id, its place in the response and the whole response, so they are
    spread evenly over its tokens. They depend neither on padding and batch nor on process, device or seed.

    Args:
        token_ids: [B, T] integers.
        mask: [B, T] bool, True at the tokens of the response.

    Returns:
        [B, T] int64, undefined outside the mask; the lowest number comes first.

    Example:
        >>> ids, mask = torch.tensor([[9, 9, 9, 9]]), torch.tensor([[False, True, True, True]])
        >>> order = tie_order(ids, mask)
        >>> bool((order == tie_order(ids[:, 1:], mask[:, 1:]).roll(1))[mask].all())  # padding does not matter
        True
    """
    own = _mixed(_mixed(token_ids.long()) + mask.long().cumsum(-1))
    response = torch.where(mask, own, 0).sum(-1, keepdim=True)  # of integers modulo 2**64, in any order
    return _mixed(own ^ _mixed(response))


def _mixed(numbers: Tensor) -> Tensor:
    """Return a bijection of 64-bit numbers under which near numbers are far apart."""
    numbers = numbers * _THIRD
    numbers = (numbers ^ (numbers >> 33)) * _FIRST
    numbers = (numbers ^ (numbers >> 33)) * _SECOND
    return numbers ^ (numbers >> 33)
