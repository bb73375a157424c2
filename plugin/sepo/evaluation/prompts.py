"""Prompts for a policy, and multi-turn generation of its answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sepo.errors import SepoError
from sepo.evaluation.benchmarks import Benchmark, Question
from sepo.evaluation.generation import Decoding, Generated, generate_answers
from sepo.forward.sequences import ScoringModel

Message = Mapping[str, str]
"""A turn with ``role`` and ``content``."""


@dataclass(frozen=True)
class ChatFormat:
    """Template and tokenizer of a policy.

    Args:
        encode: returns the token ids of messages up to the start of the assistant's turn, from messages, system prompt
            and tools (empty strings for none).
        decode: returns the text of an answer's tokens.
        stop_ids: tokens that end an answer.
        pad_id: the padding token.
        positions: maximum sequence length of the model; None without a limit.
    """

    encode: Callable[[Sequence[Message], str, str], list[int]]
    decode: Callable[[Sequence[int]], str]
    stop_ids: Sequence[int]
    pad_id: int
    positions: int | None = None


@dataclass(frozen=True)
class Prompt:
    """One conversation to be continued.

    Args:
        question: the question; its turns after the first follow the policy's answers.
        messages: all turns before the first answer.
        system: the system prompt, or the empty string.
        tools: the tools as text, or the empty string.
        expected: the expected answer as its row has it; None without one.
    """

    question: Question
    messages: tuple[Message, ...]
    system: str = ""
    tools: str = ""
    expected: Any = None


@dataclass(frozen=True)
class PromptSet:
    """Prompts whose answers are evaluated together.

    Args:
        name: ``heldout``, or the name of the benchmark.
        prompts: at least one prompt.
        benchmark: the benchmark of the prompts; None for prompts of held-out pairs.
        dataset: name of their data set in the recipe, or their file.
    """

    name: str
    prompts: Sequence[Prompt]
    benchmark: Benchmark | None
    dataset: str


@dataclass(frozen=True)
class AnsweredTurn:
    """One generated answer with its prompt.

    Args:
        prompt_ids: token ids of the prompt.
        generated: the generated tokens.
        text: the answer as text.
    """

    prompt_ids: Sequence[int]
    generated: Generated
    text: str


def distinct_rows(
    keys: Iterable[str], expected: Iterable[str | None], *, name: str
) -> tuple[list[int], dict[int, str]]:
    """Return the first row of each distinct prompt, and the expected answers by these rows.

    Args:
        keys: for each row, a text that is equal for equal prompts.
        expected: for each row, its expected answer as JSON; None without one.
        name: name of the rows in messages.

    Raises:
        SepoError: rows with the same prompt have different expected answers.
    """
    first: dict[str, int] = {}
    answers: dict[int, tuple[int, str]] = {}
    for index, (key, answer) in enumerate(zip(keys, expected, strict=True)):
        place = first.setdefault(key, index)
        if answer is None:
            continue
        row, other = answers.setdefault(place, (index, answer))
        if answer != other:
            raise SepoError(
                f"rows {row} and {index} of {name} have the same prompt and the expected answers {other} and {answer}; "
                "give both rows one answer, or the list of those that are accepted."
            )
    return sorted(first.values()), {place: answer for place, (_, answer) in answers.items()}


def question_prompts(benchmark: Benchmark, questions: Sequence[Question], *, dataset: str) -> PromptSet:
    """Return the prompts of a benchmark's questions."""
    prompts = [Prompt(question, ({"role": "user", "content": question.turns[0]},)) for question in questions]
    return PromptSet(benchmark.name, prompts, benchmark, dataset)


def check_room(prompts: PromptSet, chat_format: ChatFormat, decoding: Decoding) -> None:
    """Raise before anything is computed if prompts and answers may exceed the maximum sequence length of the model.

    Args:
        prompts: the prompts.
        chat_format: template and tokenizer of the policy.
        decoding: settings for decoding; each turn may have the maximum number of tokens.

    Raises:
        SepoError: a prompt may be too long; the message names its question.
    """
    if chat_format.positions is None:
        return
    for prompt in prompts.prompts:
        later = [chat_format.encode([{"role": "user", "content": turn}], "", "") for turn in prompt.question.turns[1:]]
        read = len(chat_format.encode(prompt.messages, prompt.system, prompt.tools)) + sum(map(len, later))
        most = read + len(prompt.question.turns) * decoding.max_new_tokens
        if most > chat_format.positions:
            raise SepoError(
                f"prompt {prompt.question.id} of {prompts.dataset} has {read} tokens and its answers may have "
                f"{most - read} more, but the model has {chat_format.positions} positions: lower --max-new-tokens "
                "or remove the prompt."
            )


def converse(
    model: ScoringModel,
    prompts: Sequence[Prompt],
    chat_format: ChatFormat,
    *,
    decoding: Decoding,
    batch_tokens: int,
    on_batch: Callable[[int], None] | None = None,
) -> list[list[AnsweredTurn]]:
    """Generate answers turn by turn: a second turn follows the policy's first answer.

    Args:
        model: the policy.
        prompts: the prompts.
        chat_format: template and tokenizer of the policy.
        decoding: settings for decoding.
        batch_tokens: see ``generate_answers``.
        on_batch: see ``generate_answers``.

    Returns:
        For each prompt, one answer for each turn of its question.
    """
    answered: list[list[AnsweredTurn]] = [[] for _ in prompts]
    histories = [list(prompt.messages) for prompt in prompts]
    for turn in range(max((len(prompt.question.turns) for prompt in prompts), default=0)):
        active = [index for index, prompt in enumerate(prompts) if turn < len(prompt.question.turns)]
        if turn:
            for index in active:
                histories[index] += [
                    {"role": "assistant", "content": answered[index][-1].text},
                    {"role": "user", "content": prompts[index].question.turns[turn]},
                ]
        ids = [chat_format.encode(histories[index], prompts[index].system, prompts[index].tools) for index in active]
        answers = generate_answers(
            model, ids, stop_ids=chat_format.stop_ids, pad_id=chat_format.pad_id, decoding=decoding,
            batch_tokens=batch_tokens, turn=turn, on_batch=on_batch,
        )  # fmt: skip
        for index, prompt_ids, answer in zip(active, ids, answers, strict=True):
            answered[index].append(AnsweredTurn(prompt_ids, answer, chat_format.decode(answer.answer)))
    return answered
