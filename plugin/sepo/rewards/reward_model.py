"""Rewards by a reward model, which reads conversations in its own tokenizer and chat template."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from sepo.forward.sequences import item_batches
from sepo.rewards.interface import SampledResponse, finite_rewards
from sepo.text.chat_rendering import ChatRenderer

logger = logging.getLogger(__name__)


class RewardModelRewards:
    """Score of a reward model for a conversation with its response.

    The conversation is written by the template in full, the end of the response's turn included, also if the response
    was truncated. A conversation with more tokens than the model has positions loses those after the first one; this is
    logged once.

    Args:
        head: scores of rows of token ids, [R].
        tokenizer: the tokenizer of the reward model, with a chat template.
        name: the reward model in words, for messages.
        batch_tokens: padded tokens of one batch.
        positions: maximum number of tokens of a conversation; None without a limit.
    """

    def __init__(
        self,
        head: Callable[[Sequence[Sequence[int]]], Tensor],
        *,
        tokenizer: Any,
        name: str,
        batch_tokens: int,
        positions: int | None = None,
    ) -> None:
        self._head, self._tokenizer, self._name = head, tokenizer, name
        self._renderer = ChatRenderer(tokenizer, name=name)
        self._batch_tokens, self._positions, self._shortened = batch_tokens, positions, False

    def __call__(self, responses: Sequence[SampledResponse]) -> list[float]:
        """Return the rewards; see ``ResponseRewards``."""
        rows = [self.token_ids(each) for each in responses]
        rewards = [0.0] * len(rows)
        for items in item_batches([len(row) for row in rows], self._batch_tokens):
            for item, value in zip(items, self._head([rows[item] for item in items]).tolist(), strict=True):
                rewards[item] = value
        return finite_rewards(responses, rewards, judge=self._name)

    def token_ids(self, response: SampledResponse) -> list[int]:
        """Return a conversation with its response as token ids of the reward model.

        Raises:
            SepoError: the template rejects the conversation.
        """
        turns = [*response.messages, {"role": "assistant", "content": response.response}]
        text = self._renderer.text(turns, system=response.system, tools=response.tools)
        ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        if self._positions is None or len(ids) <= self._positions:
            return ids
        if not self._shortened:
            self._shortened = True
            logger.warning(
                "%s has %d positions, and a conversation with its response has %d tokens: of such conversations, it "
                "does not read the beginning.",
                self._name, self._positions, len(ids),
            )  # fmt: skip
        # The first token is kept: models that expect a beginning-of-text token fail without it.
        return [ids[0], *ids[len(ids) - self._positions + 1 :]]
