"""Rewards by a verifier, which compares a response with the expected answer of its prompt."""

from __future__ import annotations

from collections.abc import Sequence

from sepo.errors import SepoError
from sepo.judges import Judge
from sepo.rewards.interface import SampledResponse, finite_rewards


class VerifierRewards:
    """Reward 1 for a response that is right and 0 for any other, or the number that a registered judge returns.

    Args:
        judge: the judge.
        name: its name, for messages.
        column: column of the expected answers, for messages.
    """

    def __init__(self, judge: Judge, *, name: str, column: str) -> None:
        self._judge, self._name, self._column = judge, name, column

    def __call__(self, responses: Sequence[SampledResponse]) -> list[float]:
        """Return the rewards; see ``ResponseRewards``.

        Raises:
            SepoError: a response has no expected answer, or the judge failed.
        """
        for response in responses:
            if response.expected is None:
                raise SepoError(
                    f"judge {self._name} compares {response.name} with nothing: the column {self._column} of its row "
                    "is empty; fill it, or leave out the row."
                )
        rewards = [self._judge.reward(each.response, each.expected) for each in responses]
        return finite_rewards(responses, rewards, judge=f"judge {self._name}")
