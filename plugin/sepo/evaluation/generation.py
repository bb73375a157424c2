"""Generation of answers in left-padded batches with transformers' ``generate``, independent of the batching."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from sepo.errors import SepoError
from sepo.forward.head import causal_lm
from sepo.forward.sequences import ScoringModel, item_batches


@dataclass(frozen=True)
class Decoding:
    """Settings for decoding answers.

    Args:
        max_new_tokens: maximum tokens of one answer, its end of turn included.
        temperature: 0 for greedy decoding, otherwise samples at this temperature, without top-k or penalties; the
            model's generation settings are ignored.
        seed: seed of samples.
        top_p: samples are drawn from the smallest set of tokens whose probability, at the temperature, is at least this
            (nucleus sampling; Holtzman et al. 2020, 1904.09751); 1 for the full distribution.

    Raises:
        SepoError: a value is out of range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise SepoError(f"max_new_tokens is {self.max_new_tokens}, expected at least 1.")
        if not 0.0 <= self.temperature < float("inf"):
            raise SepoError(f"temperature is {self.temperature}, expected 0 (greedy) or a positive number.")
        if not 0.0 < self.top_p <= 1.0:
            raise SepoError(f"top_p is {self.top_p}, expected a number above 0 and at most 1.")


@dataclass(frozen=True)
class Generated:
    """One generated answer.

    Args:
        ids: its token ids, the stop token included.
        finished: whether it ended with a stop token; False if ``max_new_tokens`` truncated it.
    """

    ids: tuple[int, ...]
    finished: bool

    @property
    def answer(self) -> tuple[int, ...]:
        """Its token ids without the stop token."""
        return self.ids[:-1] if self.finished else self.ids


def generate_answers(
    model: ScoringModel,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    pad_id: int,
    decoding: Decoding,
    batch_tokens: int,
    turn: int = 0,
    streams: Sequence[Sequence[int]] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> list[Generated]:
    """Generate answers to prompts.

    Each prompt has its own random number generator, seeded by seed, turn and its stream: neither batching nor the other
    prompts change a sample. Rounding depends on padding, so two batchings can diverge when two tokens are
    nearly equally probable.

    Args:
        model: the policy.
        prompts: token ids, each up to the start of the assistant's turn.
        stop_ids: tokens that end an answer.
        pad_id: the padding token.
        decoding: settings for decoding.
        batch_tokens: tokens per batch, padding and generated tokens included; a longer prompt has its own batch.
        turn: turn of the conversation, for the random numbers.
        streams: for each prompt, the numbers (0 to 2^32 - 1) that seed its generator, beside seed and turn; None for
            its index in ``prompts``.
        on_batch: called with the number of prompts after each batch (for a progress bar).

    Returns:
        The answers, in the order of the prompts.

    Raises:
        SepoError: there is no stop token, or a prompt is empty.
    """
    if not stop_ids:
        raise SepoError("no stop token is set, so no answer would end; expected a template with a stop token.")
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise SepoError(f"prompt {index} has no tokens, expected at least one.")
    inner: Any = causal_lm(model.model)
    config = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=sorted(stop_ids),
        pad_token_id=pad_id,
    )
    seeds = [(item,) for item in range(len(prompts))] if streams is None else streams
    answers: list[Generated] = [Generated((), False)] * len(prompts)
    lengths = [len(prompt) + decoding.max_new_tokens for prompt in prompts]
    with model.active(), _settings_replaced(inner):
        for items in item_batches(lengths, batch_tokens):
            inputs = _left_padded([prompts[item] for item in items], pad_id, next(inner.parameters()).device)
            noise = [_Noise(decoding, turn, [seeds[item] for item in items])] if decoding.temperature else []
            output = inner.generate(**inputs, generation_config=config, logits_processor=LogitsProcessorList(noise))
            for item, row in zip(items, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                answers[item] = ended(row, frozenset(stop_ids))
            if on_batch is not None:
                on_batch(len(items))
    return answers


def stream_seed(decoding: Decoding, stream: Sequence[int], *, turn: int = 0) -> int:
    """Return the seed of an answer's random numbers, in [0, 2^63).

    Args:
        decoding: its settings, with the seed of all answers.
        stream: the numbers (0 to 2^32 - 1) that stand for the answer.
        turn: turn of the conversation.
    """
    state = np.random.SeedSequence([decoding.seed, turn, *stream]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


class _Noise(LogitsProcessor):
    """Gumbel noise on the logits of each row, so that the argmax is a sample (Gumbel 1954; the Gumbel-max trick). Each
    row has its own generator, which makes the sample independent of batch and device."""

    def __init__(self, decoding: Decoding, turn: int, streams: Sequence[Sequence[int]]) -> None:
        seeds = [stream_seed(decoding, stream, turn=turn) for stream in streams]
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature, self._top_p = decoding.temperature, decoding.top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = torch.stack(
            [torch.empty(scores.shape[-1]).exponential_(generator=generator) for generator in self._generators]
        )
        scores = scores / self._temperature
        if self._top_p < 1:
            scores = _nucleus(scores, self._top_p)
        return scores - noise.log().to(scores)


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Set the logits [R, V] outside the smallest set with a probability of at least ``top_p`` to -inf."""
    ordered, places = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    before = probabilities.cumsum(-1) - probabilities
    outside = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, places, before >= top_p)
    return logits.masked_fill(outside, -torch.inf)


@contextlib.contextmanager
def _settings_replaced(inner: Any) -> Iterator[None]:
    """Replace the model's generation settings, which ``generate`` uses for values left unset, such as penalties."""
    own = inner.generation_config
    inner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = own


def _left_padded(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> dict[str, Tensor]:
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.as_tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def ended(row: Sequence[int], stop_ids: frozenset[int]) -> Generated:
    """Return the answer in a row of output: the tokens up to the first stop token, without padding.

    Args:
        row: the generated tokens.
        stop_ids: tokens that end an answer.
    """
    for place, token in enumerate(row):
        if token in stop_ids:
            return Generated(tuple(row[: place + 1]), True)
    return Generated(tuple(row), False)
