"""The text of T-REG's contrastive prompts: one requests a better response, the other a worse one.

Source: T-REG (Zhou et al. 2024, arXiv 2412.02685), Figure 2 and its caption. The figure is garbled in the available
copies of the paper; the missing words (``<provide a ...``) are inferred, all others are the paper's, including its "an
user".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

Direction = Literal["better", "worse"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)

DESCRIPTIONS: Mapping[Direction, str] = {
    "better": "helpful, correct, coherent, concise",
    "worse": "unhelpful, incorrect, incoherent, verbose",
}
"""Figure 2's caption."""

_SPEAKERS = {"user": "User", "assistant": "Assistant", "observation": "Tool result", "function": "Tool call"}


def revision_prompt(question: str, answer: str, direction: Direction) -> str:
    """Return the content of the user turn, an instruction to rewrite the response to be better, or worse.

    Args:
        question: the quoted conversation, see ``quoted_conversation``.
        answer: the response to rewrite.
        direction: ``better`` or ``worse``.
    """
    return f"""Instruction: Below is a conversation between an user and an AI Assistant.

[User Question]
{question}

[The start of Assistant's Answer]
{answer}
[The end of Assistant's Answer]

Please rewrite the Assistant's Answer to make it {direction}. Specifically, the rewritten {direction} answer should \
closely resemble the original answer but is {direction} in terms of one or multiple of the following aspects: \
helpfulness, correctness, coherence, verbosity.

IMPORTANT: Please strictly follow the following format:
First, choose one or multiple aspects to generate a {direction} answer, such as rewrite the original answer to be \
{DESCRIPTIONS[direction]}, etc.
{answer_marker(direction)}<provide a {direction} answer here>
[The end of a rewritten {direction} answer]"""


def answer_marker(direction: Direction) -> str:
    """Return the line, with its newline, that opens the rewritten response.

    The assistant turn begins with it and the scored tokens follow, as if the assistant had already chosen the aspects
    to rewrite.
    """
    return f"[The start of a rewritten {direction} answer]\n"


def quoted_conversation(
    messages: Sequence[Mapping[str, str]], *, system: str | None = None, tools: str | None = None
) -> str:
    """Return the turns before the response as the text under ``[User Question]``.

    A single user message without a system prompt is quoted unchanged (the paper's case). Anything else becomes a list
    of labelled turns, for which there is no source: the paper has no such rows. The system prompt is quoted and not
    passed to the scoring model as its system prompt, since it applies to the response.

    Args:
        messages: ``role`` and ``content`` of every turn, the last one of the user (or a tool).
        system: the row's system prompt.
        tools: the row's tools, as the host's JSON text.
    """
    if len(messages) == 1 and not system and not tools:
        return messages[0]["content"]
    parts = [f"{name}: {text}" for name, text in (("System", system), ("Tools", tools)) if text]
    parts += [f"{_SPEAKERS.get(turn['role'], turn['role'])}: {turn['content']}" for turn in messages]
    return "\n\n".join(parts)
