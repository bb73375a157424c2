"""What a measurement of token-level credit needs of a host: a tokenizer, a template, and frozen models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

from sepo.credit.reading import Reader
from sepo.forward.sequences import ScoringModel
from sepo.recipe.settings import ModelSpec, OracleSpec

NamedSpec = tuple[str, ModelSpec]
"""A model and the setting that names it, for errors."""


class CreditHost(Protocol):
    """Tokenizer, template and models of one measurement, as a training run with these settings would have them."""

    device: torch.device
    tokenizer: Any
    spec: ModelSpec

    def check(self, named: Sequence[NamedSpec]) -> None:
        """Refuse models that are missing or have another tokenizer, before any is loaded."""

    def chat_template(self) -> str | None:
        """Return the chat template that was saved with the adapters of the tokenizer's model, if any."""

    def template_reader(self, *, prompted: NamedSpec | None) -> Reader:
        """Return a reader in the host's template; ``prompted`` is the model that gets T-REG's prompts, if any does."""

    def each_model(
        self, specs: Sequence[ModelSpec], oracle: OracleSpec | None
    ) -> Iterator[tuple[ModelSpec, ScoringModel]]:
        """Load each model once, one after the other; an oracle and its base as few sets of weights as possible."""


class OpenHost(Protocol):
    """Opens a host for one measurement."""

    def __call__(
        self, tokenizer_of: NamedSpec, *, template: str | None, cutoff_len: int, dtype: str | None
    ) -> CreditHost:
        """Return the host.

        Args:
            tokenizer_of: the model whose tokenizer is used.
            template: the host's name of a template, or None for the chat template of the tokenizer or the adapter.
            cutoff_len: most tokens of a conversation with its response.
            dtype: ``fp32``, ``bf16`` or ``fp16``, or None for the host's choice.
        """
