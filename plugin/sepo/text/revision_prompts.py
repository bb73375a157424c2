"""The text of T-REG's contrastive prompts: one asks for a better answer, one for a worse one.

Source: T-REG (Zhou et al. 2024, arXiv 2412.02685), Figure 2 and its caption. The figure is garbled in the copies that
we have; what is missing there (``<provide a ...``) is restored from its sense, all other words are the paper's, its
"an user" included.
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
    """Return what the user's turn says: rewrite this answer to be better, or worse.

    Args:
        question: what was asked, see ``quoted_conversation``.
        answer: the answer to rewrite.
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
    """Return the line, with its newline, that opens the rewritten answer.

    The assistant's turn begins with it and the tokens that are scored follow, as if the assistant had chosen its
    aspects and were writing now.
    """
    return f"[The start of a rewritten {direction} answer]\n"


def quoted_conversation(
    messages: Sequence[Mapping[str, str]], *, system: str | None = None, tools: str | None = None
) -> str:
    """Return a conversation up to the answer as the text under ``[User Question]``.

    One user message without a system prompt is quoted as it is (the paper's case). Anything more is a list of labelled
    turns, which is our reading: the paper has no such rows. The system prompt is quoted rather than given to the
    scoring model as its own, since it is the answer that must heed it.

    Args:
        messages: ``role`` and ``content`` of every turn, the last one the user's (or a tool's).
        system: the row's system prompt.
        tools: the row's tools, as the host's JSON text.
    """
    if len(messages) == 1 and not system and not tools:
        return messages[0]["content"]
    parts = [f"{name}: {text}" for name, text in (("System", system), ("Tools", tools)) if text]
    parts += [f"{_SPEAKERS.get(turn['role'], turn['role'])}: {turn['content']}" for turn in messages]
    return "\n\n".join(parts)
