"""The interface of rewards: one number for every sampled response."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sepo.errors import SepoError


@dataclass(frozen=True)
class SampledResponse:
    """One response of a policy to a prompt.

    Args:
        messages: the turns before the response, with ``role`` (``user``, ``assistant``, ``observation``, ``function``)
            and ``content``.
        prompt_ids: the policy's token ids of these turns, system prompt and tools, up to the start of the response.
        response: the text of the response, without its end of turn.
        response_ids: the policy's token ids of the response, the stop token included if it is finished.
        finished: whether it ended with a stop token; False if it was truncated.
        expected: the expected answer as its row has it; None without one.
        system: the system prompt, or the empty string.
        tools: the tools as JSON text, or the empty string.
    """

    messages: tuple[Mapping[str, str], ...]
    prompt_ids: tuple[int, ...]
    response: str
    response_ids: tuple[int, ...]
    finished: bool
    expected: Any = None
    system: str = ""
    tools: str = ""

    @property
    def name(self) -> str:
        """The beginnings of the response and of the last turn before it, for messages."""
        last = self.messages[-1]["content"] if self.messages else ""
        return f"the response {self.response[:60]!r} to {last[:60]!r}"


class ResponseRewards(Protocol):
    """Rewards of responses; a higher number is better."""

    def __call__(self, responses: Sequence[SampledResponse]) -> list[float]:
        """Return the reward of each response, in their order; finite numbers.

        The reward of a response depends on nothing but the response, up to rounding: the others, their order and the
        batches do not change it.

        Raises:
            SepoError: a response cannot be judged, or its reward is not a finite number; the message names it.
        """


def finite_rewards(responses: Sequence[SampledResponse], rewards: Sequence[float], *, judge: str) -> list[float]:
    """Return rewards that are finite numbers.

    Args:
        responses: the responses.
        rewards: the reward of each.
        judge: the judge in words, for the message.

    Raises:
        SepoError: a reward is NaN or infinite; the message names its response.
    """
    for response, reward in zip(responses, rewards, strict=True):
        if not math.isfinite(reward):
            raise SepoError(f"{judge} gives {response.name} the reward {reward}, expected a finite number.")
    return list(rewards)
