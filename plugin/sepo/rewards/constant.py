"""The check that a judge distinguishes responses at all."""

from __future__ import annotations

from collections.abc import Sequence

from sepo.errors import SepoError
from sepo.recipe.response_rewards import RewardSettings

JUDGED = 64
"""Number of responses after which a judge with a single reward is refused."""


class ConstantRewardCheck:
    """Check that the first responses do not all get the same reward, from which nothing can be learned.

    Args:
        settings: how responses are judged, for the message.
        judged: number of responses that have to be judged before the check raises.
    """

    def __init__(self, settings: RewardSettings, *, judged: int = JUDGED) -> None:
        self._settings, self._judged = settings, judged
        self._seen, self._first, self._differ = 0, 0.0, False

    def add(self, rewards: Sequence[float]) -> None:
        """Count rewards of responses.

        Args:
            rewards: those that were not added before.

        Raises:
            SepoError: at least ``judged`` responses were added, and all have the same reward.
        """
        if self._differ or not rewards:
            return
        if not self._seen:
            self._first = rewards[0]
        self._seen += len(rewards)
        self._differ = any(reward != self._first for reward in rewards)
        if not self._differ and self._seen >= self._judged:
            raise SepoError(
                f"{self._settings.text} gives all of the first {self._seen} responses the reward {self._first:g}, so "
                f"none is better than another; {self._advice()}."
            )

    def _advice(self) -> str:
        if self._settings.is_verifier:
            return (
                f"compare a few responses with the column {self._settings.expected_column}, and check judge_options "
                "(extract), the prompts, and that responses are not truncated"
            )
        if self._settings.policy is not None:
            return f"check that the policy was trained, and from its reference ({self._settings.reference_key})"
        return "check that judge_model is a trained reward model, and that the responses differ"
