"""Collator that adds T-REG's token rewards to the host's padded batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sepo.errors import SepoError
from sepo.recipe.settings import RewardOrigin
from sepo.training.float_columns import FloatCollator, batch_floats
from sepo.training.selection_columns import SCORE_COLUMNS, STORE_ADVICE

TOKEN_REWARDS = "token_rewards"
"""Batch key: int32, [2B, T], the bits of the float32 reward of the token at that position; 0 if there is none."""

REWARD_COLUMNS = ("chosen_token_rewards", "rejected_token_rewards")
"""Row columns: the reward, in [-0.5, 0.5], of each response token that can be scored."""


_COLUMNS = {"prompts": REWARD_COLUMNS, "oracle": SCORE_COLUMNS}
_BOUND = 0.5


class RewardCollator(FloatCollator):
    """Collator that adds token rewards to the batch of a pairwise collator, at the positions of their labels.

    >>> def pad(rows):  # a host's collator: chosen rows first, then rejected ones, padded on the right
    ...     labels = [r["chosen_labels"] for r in rows] + [r["rejected_labels"] for r in rows]
    ...     width = max(map(len, labels))
    ...     return {"labels": torch.tensor([x + [-100] * (width - len(x)) for x in labels])}
    >>> row = {"chosen_labels": [-100, 5, 6], "rejected_labels": [-100, 7],
    ...        "chosen_token_rewards": [0.5, -0.25], "rejected_token_rewards": [0.125]}
    >>> token_rewards(RewardCollator(pad, origin="prompts")([row]))
    tensor([[ 0.0000,  0.5000, -0.2500],
            [ 0.0000,  0.1250,  0.0000]])

    Args:
        inner: the host's collator, or a ``SelectionCollator`` around it; its ``labels`` are [2B, T], the first B rows
            chosen, -100 except at response tokens.
        origin: the source of the rewards: columns of rewards (``prompts``) or of an oracle's scores (``oracle``).
    """

    def __init__(self, inner: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]], *, origin: RewardOrigin) -> None:
        super().__init__(inner, key=TOKEN_REWARDS, columns=_COLUMNS[origin], what="token rewards")
        self.origin = origin

    def checked(self, values: Tensor, scorable: Tensor) -> Tensor:
        """Compute the rewards, [2B, T] float32, from the rows' numbers.

        Raises:
            SepoError: if a reward is outside [-0.5, 0.5].
        """
        rewards = torch.where(scorable, torch.sigmoid(values) - 0.5, 0.0) if self.origin == "oracle" else values
        outside = ~(rewards.abs() <= _BOUND)
        if bool(outside.any()):
            side = "chosen" if bool(outside[: len(outside) // 2].any()) else "rejected"
            raise SepoError(
                f"a token reward of a {side} response is {rewards[outside][0].item():g}, expected a number in "
                f"[-0.5, 0.5]: the store is damaged or contains other scores. {STORE_ADVICE}"
            )
        return rewards


def token_rewards(batch: Mapping[str, Any]) -> Tensor:
    """Return the rewards of a batch, [2B, T] float32, 0 except at response tokens.

    Raises:
        SepoError: if the batch has none.
    """
    missing = (
        f"the batch has no '{TOKEN_REWARDS}', which T-REG's regularizer needs: collate with RewardCollator, and keep "
        "the column (remove_unused_columns: false)."
    )
    return batch_floats(batch, TOKEN_REWARDS, missing=missing)
