"""Answers that a policy writes: left-padded batches under transformers' ``generate``, the same whatever the batches."""

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
    """How answers are decoded.

    Args:
        max_new_tokens: of one answer, its end of turn included.
        temperature: 0 for the most probable token at each step, otherwise samples of the whole distribution at this
            temperature; no top-k, top-p or penalties, whatever the model's own generation settings say.
        seed: of samples.

    Raises:
        SepoError: a value outside its range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise SepoError(f"max_new_tokens is {self.max_new_tokens}; at least 1 is expected.")
        if not 0.0 <= self.temperature < float("inf"):
            raise SepoError(f"temperature is {self.temperature}; 0 (greedy) or a number above it is expected.")


@dataclass(frozen=True)
class Generated:
    """One answer.

    Args:
        ids: its tokens, the one that ended it included.
        finished: whether it ended by itself; False where ``max_new_tokens`` cut it off.
    """

    ids: tuple[int, ...]
    finished: bool

    @property
    def answer(self) -> tuple[int, ...]:
        """The tokens without the one that ended the answer."""
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
    on_batch: Callable[[int], None] | None = None,
) -> list[Generated]:
    """Answer prompts.

    Each prompt has random numbers of its own, by seed, turn and its place in ``prompts``: neither the batches nor the
    other prompts change a sample. Rounding differs with padding, so two batchings can part where two tokens are all but
    equally probable.

    Args:
        model: the policy.
        prompts: token ids, each up to where the assistant begins to speak.
        stop_ids: tokens that end an answer.
        pad_id: the token that pads.
        decoding: how.
        batch_tokens: tokens per batch, padding and room for the answers included; a longer prompt goes alone.
        turn: of the conversation, for the random numbers.
        on_batch: called with the number of prompts after each batch (a progress bar).

    Returns:
        The answers, in the order of the prompts.

    Raises:
        SepoError: no token ends an answer, or a prompt is empty.
    """
    if not stop_ids:
        raise SepoError("no token is known that ends an answer, so none would end; name a template that has one.")
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise SepoError(f"prompt {index} has no tokens; an answer needs something to follow.")
    inner: Any = causal_lm(model.model)
    config = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=sorted(stop_ids),
        pad_token_id=pad_id,
    )
    answers: list[Generated] = [Generated((), False)] * len(prompts)
    lengths = [len(prompt) + decoding.max_new_tokens for prompt in prompts]
    with model.active(), _own_settings_aside(inner):
        for items in item_batches(lengths, batch_tokens):
            inputs = _left_padded([prompts[item] for item in items], pad_id, next(inner.parameters()).device)
            noise = [_Noise(decoding, turn, items)] if decoding.temperature else []
            output = inner.generate(**inputs, generation_config=config, logits_processor=LogitsProcessorList(noise))
            for item, row in zip(items, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                answers[item] = _ended(row, frozenset(stop_ids))
            if on_batch is not None:
                on_batch(len(items))
    return answers


class _Noise(LogitsProcessor):
    """Gumbel noise on the logits of each row: the largest sum is a sample (Gumbel 1954; the Gumbel-max
    trick), and drawn from a generator per row it is the same sample in any batch, on any device."""

    def __init__(self, decoding: Decoding, turn: int, items: Sequence[int]) -> None:
        seeds = [np.random.SeedSequence([decoding.seed, turn, item]).generate_state(1, np.uint64) for item in items]
        self._generators = [torch.Generator().manual_seed(int(seed[0] >> np.uint64(1))) for seed in seeds]
        self._temperature = decoding.temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = torch.stack(
            [torch.empty(scores.shape[-1]).exponential_(generator=generator) for generator in self._generators]
        )
        return scores / self._temperature - noise.log().to(scores)


@contextlib.contextmanager
def _own_settings_aside(inner: Any) -> Iterator[None]:
    """``generate`` fills what a configuration leaves open with the model's own settings, penalties among them."""
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


def _ended(row: Sequence[int], stop_ids: frozenset[int]) -> Generated:
    """What of a row is the answer: up to the first token that ends it, what pads the row left out."""
    for place, token in enumerate(row):
        if token in stop_ids:
            return Generated(tuple(row[: place + 1]), True)
    return Generated(tuple(row), False)
