"""Scores of rows of token ids under a loaded reward model, independent of the padding of their batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sepo.errors import SepoError
from sepo.forward.head import causal_lm
from sepo.forward.sequences import ScoredSequence, padded_batch
from sepo.rewards.reward_files import KEY

Rows = Sequence[Sequence[int]]


class ClassificationHead:
    """Score of a sequence classification model: its one output, or the ``score`` of its output.

    A row has the score that the model's own forward gives it alone, without padding; batches are padded such that this
    holds. If the padding token of its configuration is the end of a turn, the model therefore pools at the token before
    it, as it did in training. Without a padding token it pools at the last token.

    Args:
        model: the model, in eval mode.
        name: its name, for messages.
    """

    def __init__(self, model: Any, *, name: str) -> None:
        self._model: Any = causal_lm(model)
        self._name = name

    @torch.no_grad()
    def __call__(self, rows: Rows) -> Tensor:
        """Return the scores of rows of token ids, [R], on the CPU.

        Raises:
            SepoError: the output of the model is not one number for each row.
        """
        pad_id = self._pad_id(rows)
        inputs = _padded(rows, pad_id, self._model)
        with self._padding_token(pad_id):
            output = self._model(**inputs, return_dict=True)
        score = getattr(output, "score", None)
        values = getattr(output, "logits", None) if score is None else score
        if not isinstance(values, Tensor) or values.numel() != len(rows):
            shape = "nothing" if not isinstance(values, Tensor) else f"values of the shape {list(values.shape)}"
            raise SepoError(
                f"{KEY}: '{self._name}' returns {shape} for {len(rows)} conversations, expected one output for each, "
                "or an output with a score."
            )
        return values.reshape(len(rows)).cpu()

    def _configs(self) -> list[Any]:
        config = self._model.config
        text = config.get_text_config()
        return [config] if text is config else [text, config]

    def _pad_id(self, rows: Rows) -> int:
        """Return the padding token of the configuration; without one, a token that occurs in no row."""
        size = self._model.get_input_embeddings().num_embeddings
        for config in self._configs():
            own = getattr(config, "pad_token_id", None)
            if own is not None and 0 <= own < size:
                return int(own)
        present = set().union(*rows)
        return next(token for token in range(size) if token not in present)

    @contextlib.contextmanager
    def _padding_token(self, pad_id: int) -> Iterator[None]:
        """Set the padding token by which the model finds the last token of a row."""
        before = [(config, getattr(config, "pad_token_id", None)) for config in self._configs()]
        for config, _ in before:
            config.pad_token_id = pad_id
        try:
            yield
        finally:
            for config, own in before:
                config.pad_token_id = own


class ValueHead:
    """Value at the last token, as LLaMA-Factory's stage ``rm`` trains it: a linear function of the last hidden state.

    Args:
        model: the causal language model, in eval mode.
        weight: weight of the head, [1, H].
        bias: its bias, [1].
    """

    def __init__(self, model: Any, *, weight: Tensor, bias: Tensor) -> None:
        self._inner: Any = causal_lm(model)
        device = next(model.parameters()).device
        self._weight, self._bias = weight.to(device), bias.to(device)

    @torch.no_grad()
    def __call__(self, rows: Rows) -> Tensor:
        """Return the values of rows of token ids, [R], on the CPU."""
        inputs = _padded(rows, 0, self._inner)
        hidden = self._inner.base_model(**inputs, use_cache=False, return_dict=True).last_hidden_state
        last = hidden[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]
        values = torch.nn.functional.linear(last.to(self._weight.dtype), self._weight, self._bias)
        return values.squeeze(-1).cpu()


def _padded(rows: Rows, pad_id: int, model: Any) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    inputs, _, _ = padded_batch([ScoredSequence(row, len(row)) for row in rows], device)
    mask = inputs["attention_mask"]
    return {"input_ids": inputs["input_ids"].masked_fill(mask == 0, pad_id), "attention_mask": mask}
