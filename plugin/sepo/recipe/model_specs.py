"""Frozen models of a recipe, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sepo.errors import SepoError


@dataclass(frozen=True)
class ModelSpec:
    """A frozen scoring model by name.

    Args:
        model: local directory or hub name of a full model.
        adapters: its LoRA adapters, applied in this order.
        quantization_bit: 4, 8 or None.
    """

    model: str
    adapters: tuple[str, ...] = ()
    quantization_bit: int | None = None

    @property
    def text(self) -> str:
        """The model in words: its name, and those of its adapters."""
        return " with ".join(filter(None, (self.model, ",".join(self.adapters))))

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, for the run's ``output_dir``."""
        return {"model": self.model, "adapters": list(self.adapters), "quantization_bit": self.quantization_bit}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Construct from the values of ``as_dict``."""
        return cls(str(values["model"]), tuple(map(str, values["adapters"])), values["quantization_bit"])


@dataclass(frozen=True)
class OracleSpec:
    """Oracle and base; the difference of their log-probabilities is the score of a token.

    Args:
        oracle: the model trained with preference optimization.
        base: the model that it was trained from.

    Raises:
        SepoError: If both are the same model, so that every score would be zero.
    """

    oracle: ModelSpec
    base: ModelSpec

    def __post_init__(self) -> None:
        if (self.oracle.model, self.oracle.adapters) == (self.base.model, self.base.adapters):
            raise SepoError(
                f"the oracle and its base are the same model ({self.oracle.model!r}), so every token would score zero; "
                "oracle_model or oracle_model_adapters must name a model that DPO trained from oracle_base_model."
            )

    @property
    def shared_adapters(self) -> tuple[str, ...]:
        """Adapters that both models start with: merged once if both share one set of weights."""
        shared = []
        for of_oracle, of_base in zip(self.oracle.adapters, self.base.adapters, strict=False):
            if of_oracle != of_base:
                break
            shared.append(of_oracle)
        return tuple(shared)

    @property
    def one_set_of_weights(self) -> bool:
        """Whether the two differ by at most one adapter each over the same weights."""
        shared = len(self.shared_adapters)
        same_weights = (self.oracle.model, self.oracle.quantization_bit) == (
            self.base.model,
            self.base.quantization_bit,
        )
        mergeable = shared == 0 or self.oracle.quantization_bit is None
        return same_weights and mergeable and max(len(self.oracle.adapters), len(self.base.adapters)) - shared <= 1
