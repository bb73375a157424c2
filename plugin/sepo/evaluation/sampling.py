"""Several sampled responses to each prompt, each independent of all the others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sepo.evaluation.generation import Decoding, Generated, generate_answers
from sepo.evaluation.prompts import ChatFormat, Prompt
from sepo.forward.sequences import ScoringModel, length_batches
from sepo.judges import Judge


@dataclass(frozen=True)
class SampledResponse:
    """One response of a policy to a prompt.

    Args:
        text: the response as text.
        tokens: number of its tokens, without the stop token.
        finished: whether it ended with a stop token; False if it was truncated.
    """

    text: str
    tokens: int
    finished: bool


def sample_responses(
    model: ScoringModel,
    prompts: Sequence[Prompt],
    chat_format: ChatFormat,
    *,
    samples: int,
    decoding: Decoding,
    batch_tokens: int,
    on_batch: Callable[[int], None] | None = None,
) -> Iterator[tuple[Prompt, list[SampledResponse]]]:
    """Sample responses, and yield those of a prompt as soon as they are complete, in an order by length.

    The random numbers of a response follow from the seed, the tokens of its prompt and its number among the samples:
    the other prompts, their order, the number of samples and the batches change none of its samples. The limits are
    those of ``generate_answers``: rounding depends on padding.

    Args:
        model: the policy.
        prompts: the prompts, each with one turn to answer.
        chat_format: template and tokenizer of the policy.
        samples: number of responses for each prompt, at least 1.
        decoding: settings for decoding.
        batch_tokens: see ``generate_answers``.
        on_batch: see ``generate_answers``.

    Yields:
        A prompt and its responses, in the order of their numbers.
    """
    ids = [prompt_ids(prompt, chat_format) for prompt in prompts]
    lengths = [samples * (len(each) + decoding.max_new_tokens) for each in ids]
    for places in length_batches(lengths, batch_tokens):
        found = generate_answers(
            model,
            [ids[place] for place in places for _ in range(samples)],
            stop_ids=chat_format.stop_ids,
            pad_id=chat_format.pad_id,
            decoding=decoding,
            batch_tokens=batch_tokens,
            streams=[(*stream_of(ids[place]), number) for place in places for number in range(samples)],
            on_batch=on_batch,
        )
        responses = [
            SampledResponse(chat_format.decode(each.answer), len(each.answer), each.finished) for each in found
        ]  # fmt: skip
        for index, place in enumerate(places):
            yield prompts[place], responses[index * samples : (index + 1) * samples]


def sample_batch(
    model: ScoringModel,
    samples: Sequence[tuple[Sequence[int], int]],
    chat_format: ChatFormat,
    *,
    decoding: Decoding,
) -> list[Generated]:
    """Sample one batch of responses; each has the random numbers that it has in ``sample_responses``.

    Args:
        model: the policy.
        samples: token ids of a prompt and number of the sample, for each row of the batch.
        chat_format: template and tokenizer of the policy.
        decoding: settings for decoding.

    Returns:
        The responses, in the order of ``samples``.
    """
    longest = max(len(ids) for ids, _ in samples) + decoding.max_new_tokens
    return generate_answers(
        model,
        [ids for ids, _ in samples],
        stop_ids=chat_format.stop_ids,
        pad_id=chat_format.pad_id,
        decoding=decoding,
        batch_tokens=len(samples) * longest,
        streams=[(*stream_of(ids), number) for ids, number in samples],
    )


def prompt_ids(prompt: Prompt, chat_format: ChatFormat) -> list[int]:
    """Return the token ids of a prompt, up to the start of the assistant's turn."""
    return chat_format.encode(prompt.messages, prompt.system, prompt.tools)


def stream_of(ids: Sequence[int]) -> tuple[int, ...]:
    """Return the numbers that stand for a prompt among all prompts, by the content of its tokens."""
    digest = hashlib.sha256(np.asarray(ids, dtype="<i8").tobytes()).digest()
    return tuple(np.frombuffer(digest, dtype="<u4").tolist())


def sample_row(prompt: Prompt, responses: Sequence[SampledResponse], judge: Judge | None) -> dict[str, Any]:
    """Return the line of ``samples.jsonl`` for a prompt.

    Args:
        prompt: the prompt.
        responses: its responses.
        judge: the judge of the responses; None without one.

    Raises:
        SepoError: the judge failed.
    """
    rows: list[dict[str, Any]] = [
        {"text": each.text, "tokens": each.tokens, "finished": each.finished} for each in responses
    ]
    row = {
        "id": prompt.question.id,
        "prompt": prompt.question.turns[0],
        "messages": [dict(message) for message in prompt.messages],
        "system": prompt.system,
        "tools": prompt.tools,
        "responses": rows,
    }
    if judge is None:
        return row
    for each in rows:
        each["right"] = None if prompt.expected is None else judge(each["text"], prompt.expected)
    return {**row, "expected": prompt.expected}
