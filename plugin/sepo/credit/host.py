"""The interface of a host for measuring token-level credit: a tokenizer, a template and frozen models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

from sepo.credit.reading import Reader
from sepo.forward.sequences import ScoringModel
from sepo.recipe.model_specs import ModelSpec, OracleSpec

NamedSpec = tuple[str, ModelSpec]
"""The setting that names a model, for error messages, and the model."""


class CreditHost(Protocol):
    """Tokenizer, template and models of one measurement, as a training run with the same settings has them."""

    device: torch.device
    tokenizer: Any
    spec: ModelSpec

    def check(self, named: Sequence[NamedSpec]) -> None:
        """Raise if a model is missing or has another tokenizer, before any is loaded."""

    def chat_template(self) -> str | None:
        """Return the chat template that was saved with the adapters of the tokenizer's model, if any."""

    def template_reader(self, *, prompted: NamedSpec | None) -> Reader:
        """Return a reader with the host's template; ``prompted`` is the model for T-REG's prompts, or None."""

    def each_oracle(self, oracles: Sequence[OracleSpec]) -> Iterator[tuple[OracleSpec, ScoringModel, ScoringModel]]:
        """Load oracles one after the other, each with its base, which share weights if possible."""

    def each_model(self, specs: Sequence[ModelSpec]) -> Iterator[tuple[ModelSpec, ScoringModel]]:
        """Load each model once, one at a time."""


class OpenHost(Protocol):
    """Function that opens a host for one measurement."""

    def __call__(
        self, tokenizer_of: NamedSpec, *, template: str | None, cutoff_len: int, dtype: str | None
    ) -> CreditHost:
        """Return the host.

        Args:
            tokenizer_of: the model whose tokenizer is used.
            template: name of a template of the host, or None for the chat template of the tokenizer or the adapter.
            cutoff_len: maximum tokens of a conversation with its response.
            dtype: ``fp32``, ``bf16`` or ``fp16``, or None for the host's choice.
        """
