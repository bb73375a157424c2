"""Prompts as token ids in TRL's GRPO trainer, and the ends of their responses.

A host writes prompts in its own template. The trainer gets these ids, not a text that it would tokenize again:

    row = prompt_row([1, 5, 9], messages=..., system="", tools="", expected=None)
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trl.trainer.grpo_trainer import GRPOTrainer as _Base
else:
    _Base = object

PROMPT = "prompt"
"""Column of the rows that TRL reads: the token ids up to the start of the response."""

ROW = "sepo_row"
"""Column with the rest of a row, as JSON: ``messages``, ``system``, ``tools`` and ``expected``."""


def prompt_row(
    ids: Sequence[int], *, messages: Sequence[Mapping[str, str]], system: str, tools: str, expected: Any
) -> dict[str, Any]:
    """Return the row of a prompt.

    Args:
        ids: token ids of the prompt in the host's template.
        messages: the turns before the response, with ``role`` and ``content``.
        system: the system prompt, or the empty string.
        tools: the tools as text, or the empty string.
        expected: the expected answer as its row has it, plain JSON; None without one.
    """
    rest = {"messages": [dict(message) for message in messages], "system": system, "tools": tools, "expected": expected}
    return {PROMPT: list(ids), ROW: json.dumps(rest, ensure_ascii=False)}


def ended(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """Return the ids of a response up to its first stop token, which is included."""
    end = next((place for place, token in enumerate(ids) if token in stop_ids), len(ids))
    return list(ids[: end + 1])


class _PaddedPrompts:
    """Stands for a tokenizer where TRL 0.24 tokenizes prompts, and pads ids on the left."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: Sequence[Sequence[int]], **kwargs: Any) -> Any:
        rows = {"input_ids": [list(ids) for ids in text]}
        return self._tokenizer.pad(rows, padding=True, padding_side="left", return_tensors="pt")


class PromptsAsIds(_Base):
    """Mixin for TRL's GRPO trainer whose rows have the column ``PROMPT``.

    Attributes:
        stop_ids: tokens that end a response.
    """

    stop_ids: Sequence[int]
    processing_class: Any

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Return the prompts, which are ids already (TRL 1)."""
        return [list(ids) for ids in prompts], None, {}

    def _generate_single_turn(self, prompts: list[Any], *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Sample one response for each prompt, and remove what follows its first stop token."""
        parent: Any = super()
        if hasattr(parent, "_tokenize_prompts"):
            completions, logps, *rest = parent._generate_single_turn(prompts, *args, **kwargs)
            before: tuple[Any, ...] = ()
        else:  # TRL 0.24 tokenizes here
            vllm = [{"prompt_token_ids": list(ids)} for ids in prompts] if self.use_vllm else None
            with self._prompts_padded():
                ids, completions, logps, *rest = parent._generate_single_turn(vllm or prompts, *args, **kwargs)
            before = (ids,)
        completions = [ended(ids, self.stop_ids) for ids in completions]
        if logps is not None:
            logps = [list(row)[: len(ids)] for row, ids in zip(logps, completions, strict=True)]
        return (*before, completions, logps, *rest)

    @contextlib.contextmanager
    def _prompts_padded(self) -> Iterator[None]:
        tokenizer = self.processing_class
        self.processing_class = _PaddedPrompts(tokenizer)
        try:
            yield
        finally:
            self.processing_class = tokenizer
