"""What a policy is asked, and the conversations that come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sepo.errors import SepoError
from sepo.evaluation.generation import Decoding, Generated, generate_answers
from sepo.evaluation.judges import Judge, Question
from sepo.forward.sequences import ScoringModel

Message = Mapping[str, str]
"""``role`` and ``content`` of a turn."""


@dataclass(frozen=True)
class Voice:
    """How a policy reads and speaks: its template and tokenizer.

    Args:
        encode: token ids of messages up to where the assistant begins, given also the system prompt and the tools
            (empty where there are none).
        decode: the text of an answer's tokens.
        stop_ids: tokens that end an answer.
        pad_id: the token that pads.
        positions: how many tokens the model can read; None where it has no limit.
    """

    encode: Callable[[Sequence[Message], str, str], list[int]]
    decode: Callable[[Sequence[int]], str]
    stop_ids: Sequence[int]
    pad_id: int
    positions: int | None = None


@dataclass(frozen=True)
class Prompt:
    """One conversation to go on with.

    Args:
        question: its turns after the first are said after the policy's answers.
        messages: everything up to the first answer.
        system: the system prompt, or empty.
        tools: the tools as text, or empty.
    """

    question: Question
    messages: tuple[Message, ...]
    system: str = ""
    tools: str = ""


@dataclass(frozen=True)
class PromptSet:
    """Prompts that are answered and counted together.

    Args:
        name: ``heldout``, or the benchmark's.
        prompts: at least one.
        judge: the benchmark that they are from; None for prompts of held-out pairs.
        dataset: what the recipe calls their data set, or the file that they are from.
    """

    name: str
    prompts: Sequence[Prompt]
    judge: Judge | None
    dataset: str


@dataclass(frozen=True)
class Spoken:
    """One answer with what it follows.

    Args:
        prompt_ids: what the policy read.
        generated: what it wrote.
        text: the same as text.
    """

    prompt_ids: Sequence[int]
    generated: Generated
    text: str


def question_prompts(judge: Judge, questions: Sequence[Question], *, dataset: str) -> PromptSet:
    """The prompts of a benchmark's questions."""
    prompts = [Prompt(question, ({"role": "user", "content": question.turns[0]},)) for question in questions]
    return PromptSet(judge.name, prompts, judge, dataset)


def check_room(prompts: PromptSet, voice: Voice, decoding: Decoding) -> None:
    """Refuse prompts that the model may have no positions for, before anything is computed.

    Args:
        prompts: the prompts.
        voice: the policy's.
        decoding: of the answers; each turn may be as long as it allows.

    Raises:
        SepoError: naming the question.
    """
    if voice.positions is None:
        return
    for prompt in prompts.prompts:
        later = [voice.encode([{"role": "user", "content": turn}], "", "") for turn in prompt.question.turns[1:]]
        read = len(voice.encode(prompt.messages, prompt.system, prompt.tools)) + sum(map(len, later))
        most = read + len(prompt.question.turns) * decoding.max_new_tokens
        if most > voice.positions:
            raise SepoError(
                f"prompt {prompt.question.id} of {prompts.dataset} has {read} tokens and its answers may have "
                f"{most - read} more, but the model has {voice.positions} positions: lower --max-new-tokens or leave "
                "the prompt out."
            )


def converse(
    model: ScoringModel,
    prompts: Sequence[Prompt],
    voice: Voice,
    *,
    decoding: Decoding,
    batch_tokens: int,
    on_batch: Callable[[int], None] | None = None,
) -> list[list[Spoken]]:
    """Answer prompts turn by turn: a second turn is asked after the policy's own first answer.

    Args:
        model: the policy.
        prompts: the prompts.
        voice: the policy's.
        decoding: how answers are decoded.
        batch_tokens: see ``generate_answers``.
        on_batch: see ``generate_answers``.

    Returns:
        For each prompt its answers, one for each of its question's turns.
    """
    said: list[list[Spoken]] = [[] for _ in prompts]
    heard = [list(prompt.messages) for prompt in prompts]
    for turn in range(max((len(prompt.question.turns) for prompt in prompts), default=0)):
        asked = [index for index, prompt in enumerate(prompts) if turn < len(prompt.question.turns)]
        if turn:
            for index in asked:
                heard[index] += [
                    {"role": "assistant", "content": said[index][-1].text},
                    {"role": "user", "content": prompts[index].question.turns[turn]},
                ]
        ids = [voice.encode(heard[index], prompts[index].system, prompts[index].tools) for index in asked]
        answers = generate_answers(
            model, ids, stop_ids=voice.stop_ids, pad_id=voice.pad_id, decoding=decoding, batch_tokens=batch_tokens,
            turn=turn, on_batch=on_batch,
        )  # fmt: skip
        for index, prompt_ids, answer in zip(asked, ids, answers, strict=True):
            said[index].append(Spoken(prompt_ids, answer, voice.decode(answer.answer)))
    return said
