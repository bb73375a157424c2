"""The reward function that TRL's GRPO trainer calls, from a judge of responses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from sepo.rewards.interface import ResponseRewards, SampledResponse


class JudgeReward:
    """Reward function of TRL for rows of ``sepo.online.prompts``; its name in the metrics is ``judge``.

    Args:
        judge: the judge.
        decode: returns the text of a response's tokens, without special tokens.
        stop_ids: tokens that end a response.
    """

    __name__ = "judge"

    def __init__(
        self, judge: ResponseRewards, *, decode: Callable[[Sequence[int]], str], stop_ids: Sequence[int]
    ) -> None:
        self._judge, self._decode, self._stop_ids = judge, decode, frozenset(stop_ids)

    def __call__(
        self,
        *,
        prompts: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        sepo_row: Sequence[str],
        **kwargs: Any,
    ) -> list[float]:
        """Return the reward of each response.

        Args:
            prompts: token ids of the prompts.
            completion_ids: token ids of the responses.
            sepo_row: the rest of each row, as JSON.
            **kwargs: what else TRL passes.

        Raises:
            SepoError: see ``ResponseRewards``.
        """
        sampled = zip(prompts, completion_ids, sepo_row, strict=True)
        return self._judge([self._response(ids, response, json.loads(row)) for ids, response, row in sampled])

    def _response(self, prompt: Sequence[int], response: Sequence[int], row: dict[str, Any]) -> SampledResponse:
        finished = bool(response) and response[-1] in self._stop_ids
        return SampledResponse(
            messages=tuple(row["messages"]),
            prompt_ids=tuple(prompt),
            response=self._decode(response[:-1] if finished else response),
            response_ids=tuple(response),
            finished=finished,
            expected=row["expected"],
            system=row["system"],
            tools=row["tools"],
        )
