"""Sampled and judged prompts: lines of the file of samples, and rows of the data set of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sepo.evaluation.prompts import Prompt
from sepo.pairs.pairing import JudgedResponse, NoPair, Pair

Row = dict[str, Any]

_ROLES = {"user": "user", "assistant": "assistant", "observation": "tool", "function": "function_call"}
"""Names of the roles in the rows of pairs, which the data readers of both hosts have."""

ENTRY = {
    "formatting": "sharegpt",
    "ranking": True,
    "columns": {"messages": "messages", "chosen": "chosen", "rejected": "rejected"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "observation_tag": "tool",
        "function_tag": "function_call",
        "system_tag": "system",
    },
}
"""Entry of the pairs in dataset_info.json, without the name of their file."""


@dataclass(frozen=True)
class JudgedPrompt:
    """A prompt with its judged responses and the pair that is made of them.

    Args:
        prompt: the prompt.
        responses: its responses, in the order of their numbers.
        result: the pair, or why there is none.
    """

    prompt: Prompt
    responses: Sequence[JudgedResponse]
    result: Pair | NoPair

    @property
    def pair(self) -> Pair | None:
        """The pair; None if there is none."""
        return self.result if isinstance(self.result, Pair) else None

    @property
    def margin(self) -> float:
        """The reward of the chosen response minus that of the rejected one; there must be a pair."""
        chosen, rejected = self.sides
        return chosen.reward - rejected.reward

    @property
    def sides(self) -> tuple[JudgedResponse, JudgedResponse]:
        """The chosen and the rejected response; there must be a pair."""
        assert self.pair is not None
        return self.responses[self.pair.chosen], self.responses[self.pair.rejected]


def sample_line(judged: JudgedPrompt, *, seed: int) -> Row:
    """Return the line of ``samples.jsonl`` for a prompt.

    Args:
        judged: the prompt.
        seed: seed of the samples; the random numbers of a response follow from it, the prompt and ``sample``.
    """
    prompt, pair = judged.prompt, judged.pair
    expected = {} if prompt.expected is None else {"expected": prompt.expected}
    return {
        "id": prompt.question.id,
        "prompt": prompt.question.turns[0],
        "messages": [dict(message) for message in prompt.messages],
        "system": prompt.system,
        "tools": prompt.tools,
        **expected,
        "seed": seed,
        "responses": [
            {
                "sample": number,
                "text": each.text,
                "tokens": each.tokens,
                "finished": each.finished,
                "reward": each.reward,
            }
            for number, each in enumerate(judged.responses)
        ],
        "chosen": None if pair is None else pair.chosen,
        "rejected": None if pair is None else pair.rejected,
        "no_pair": None if pair is not None else judged.result,
    }


def ranking_rows(judged: Sequence[JudgedPrompt]) -> tuple[list[Row], Row]:
    """Return the rows of the data set and its entry in dataset_info.json, without the name of the file.

    The system prompt is a turn, which both hosts read; tools are a column if any prompt has some.

    Args:
        judged: the prompts; those without a pair are left out.
    """
    kept = [each for each in judged if each.pair is not None]
    tools = any(each.prompt.tools for each in kept)
    rows = []
    for each in kept:
        chosen, rejected = each.sides
        rows.append(
            {
                "messages": _messages(each.prompt),
                "chosen": {"role": "assistant", "content": chosen.text},
                "rejected": {"role": "assistant", "content": rejected.text},
                **({"tools": each.prompt.tools} if tools else {}),
                "chosen_reward": float(chosen.reward),
                "rejected_reward": float(rejected.reward),
            }
        )
    columns = {**ENTRY["columns"], **({"tools": "tools"} if tools else {})}  # type: ignore[dict-item]
    return rows, {**ENTRY, "columns": columns}


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*system, *({"role": _ROLES[turn["role"]], "content": turn["content"]} for turn in prompt.messages)]
