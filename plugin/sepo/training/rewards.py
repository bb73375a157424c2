"""Puts T-REG's token rewards beside the host's padded batch.

They travel as the bit pattern of float32 in int32: an engine may cast every floating-point input of a batch to its own
dtype (DeepSpeed does), and a reward in bfloat16 has two or three digits. So the step sees the very numbers of the store
under every engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from sepo.errors import SepoError
from sepo.training.collator import IGNORE_INDEX

TOKEN_REWARDS = "token_rewards"
"""Batch key: int32, [2B, T], the bits of the float32 reward of the token at that position; 0 where there is none."""

RewardOrigin = Literal["prompts", "oracle"]
"""What rows carry. ``prompts``: rewards. ``oracle``: an oracle's log-ratios s, whose rewards are sigmoid(s) - 0.5."""

_COLUMNS = {"prompts": "token_rewards", "oracle": "scores"}
_BOUND = 0.5


class RewardCollator:
    """Call a pairwise collator, then put each token's reward where its label stands.

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
            chosen, -100 where no response token is.
        origin: what the rows carry.
    """

    def __init__(self, inner: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]], *, origin: RewardOrigin) -> None:
        self.inner, self.origin = inner, origin

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows.

        Raises:
            SepoError: a row's number of rewards is not its number of scorable response tokens, or a reward lies
                outside [-0.5, 0.5].
        """
        batch = self.inner(features)
        labels: Tensor = batch["labels"]
        scorable = labels != IGNORE_INDEX
        scorable[:, 0] = False  # a token without a predecessor has no log-probability
        rewards = torch.zeros(labels.shape, dtype=torch.float32)
        sides = [side for side in ("chosen", "rejected") for _ in features]
        for index, (side, feature) in enumerate(zip(sides, [*features, *features], strict=True)):
            row = torch.as_tensor(feature[f"{side}_{_COLUMNS[self.origin]}"], dtype=torch.float32)
            rewards[index, scorable[index]] = self._checked(row, side=side, tokens=int(scorable[index].sum()))
        batch[TOKEN_REWARDS] = rewards.view(torch.int32)
        return batch

    def _checked(self, row: Tensor, *, side: str, tokens: int) -> Tensor:
        advice = "Delete the store named in the log, or point token_scores_dir elsewhere."
        if len(row) != tokens:
            raise SepoError(
                f"{len(row)} token rewards for a {side} response of {tokens} tokens: the rewards belong to other data. "
                f"{advice}"
            )
        row = torch.sigmoid(row) - 0.5 if self.origin == "oracle" else row
        if not bool((row.abs() <= _BOUND).all()):
            worst = row[~(row.abs() <= _BOUND)][0].item()
            raise SepoError(
                f"a token reward of a {side} response is {worst:g}, expected a number in [-0.5, 0.5]: the store is "
                f"damaged or holds other scores. {advice}"
            )
        return row


def token_rewards(batch: Mapping[str, Any]) -> Tensor:
    """The rewards of a batch, [2B, T] float32, 0 where no response token is.

    Raises:
        SepoError: the batch carries none.
    """
    if TOKEN_REWARDS not in batch:
        raise SepoError(
            f"the batch has no '{TOKEN_REWARDS}', which T-REG's regularizer needs: collate with RewardCollator, and "
            "keep the column (remove_unused_columns: false)."
        )
    return batch[TOKEN_REWARDS].view(torch.float32)
