"""Everything that a run of one of our stages was asked for, in one frozen object made before any model loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sepo.errors import SepoError
from sepo.objectives import Method

RewardOrigin = Literal["prompts", "oracle"]
"""Where T-REG's token rewards come from. ``prompts``: rewards. ``oracle``: an oracle's log-ratios s, whose rewards are
sigmoid(s) - 0.5."""


@dataclass(frozen=True)
class ModelSpec:
    """A frozen scoring model by name.

    Args:
        model: folder or hub name of a full model.
        adapters: LoRA adapters over it, applied in this order.
        quantization_bit: 4, 8 or None.
    """

    model: str
    adapters: tuple[str, ...] = ()
    quantization_bit: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, for a run's folder."""
        return {"model": self.model, "adapters": list(self.adapters), "quantization_bit": self.quantization_bit}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Read what ``as_dict`` wrote."""
        return cls(str(values["model"]), tuple(map(str, values["adapters"])), values["quantization_bit"])


@dataclass(frozen=True)
class OracleSpec:
    """The two models whose log-probabilities' difference scores a token.

    Args:
        oracle: the model trained with preference optimization.
        base: the model that it was trained from.

    Raises:
        SepoError: both are the same model, so that every score would be zero.
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
        """The adapters that both models start with: merged once when one set of weights serves both."""
        shared = []
        for ours, theirs in zip(self.oracle.adapters, self.base.adapters, strict=False):
            if ours != theirs:
                break
            shared.append(ours)
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


@dataclass(frozen=True)
class TokenRewardSource:
    """Where T-REG's token rewards come from.

    Args:
        origin: ``prompts`` (the paper's contrastive prompts) or ``oracle`` (sigmoid of the oracle's log-ratio - 0.5).
        model: who is prompted; None where the oracle gives the rewards.
        key: the recipe's key that names this model.
    """

    origin: RewardOrigin
    model: ModelSpec | None = None
    key: str = ""


@dataclass(frozen=True)
class PrecomputedReference:
    """The reference of a run that stores its log-probabilities before training and loads no second model.

    Args:
        model: the reference.
        key: the recipe's key that names it.
    """

    model: ModelSpec
    key: str


@dataclass(frozen=True)
class RunSettings:
    """What a stage needs beside the host's own arguments.

    Args:
        stage: the name in the recipe.
        method: the resolved objective with its selection.
        oracle: the scoring models, or None where nothing is scored beforehand.
        token_scores_dir: root of the score stores, or None for the default.
        score_batch_tokens: padded tokens per scoring batch.
        head_chunk_tokens: tokens whose logits exist at a time, or None for 64 MiB of logits.
        batch_tokens: most tokens that go through the policy at once, or None for the device batch.
        notes: what to say once in the log (keys of the recipe that this stage does not use).
        token_rewards: where T-REG's token rewards come from, or None where no regularizer is on.
        precomputed_reference: whose log-probabilities are stored before training, or None where a reference that is
            needed runs in training.
        ref_model: the reference by name, where the recipe names one and it runs in training.
    """

    stage: str
    method: Method
    oracle: OracleSpec | None
    token_scores_dir: str | None
    score_batch_tokens: int
    head_chunk_tokens: int | None
    batch_tokens: int | None = None
    notes: tuple[str, ...] = ()
    token_rewards: TokenRewardSource | None = None
    precomputed_reference: PrecomputedReference | None = None
    ref_model: ModelSpec | None = None

    @property
    def runs_reference(self) -> bool:
        """Whether a reference runs beside the policy in training: the method has one that is not stored."""
        return self.method.needs_reference and self.precomputed_reference is None

    @property
    def prompts_for_rewards(self) -> bool:
        """Whether token rewards come from contrastive prompts, which quote the conversation."""
        return self.token_rewards is not None and self.token_rewards.origin == "prompts"

    @property
    def scores_before_training(self) -> bool:
        """Whether numbers per token are computed before training, which a score store keeps."""
        return (
            self.oracle is not None
            or self.prompts_for_rewards
            or self.precomputed_reference is not None
            or self.method.token_scorer.from_batch is not None
        )

    @property
    def _rejected_end(self) -> str:
        """Which scores of a rejected answer are selected; of a chosen one it is always the highest."""
        return "highest" if self.method.token_scorer.rejected_largest else "lowest"

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values, for a run's folder."""
        return {
            "stage": self.stage,
            "objective": self.method.name,
            "reference": self.method.needs_reference,
            "hyperparameters": dict(self.method.hyperparameters),
            "token_scorer": self.method.scorer,
            "select": None if self.method.selector is None else asdict(self.method.selector),
            "rejected_selects": None if self.method.selector is None else self._rejected_end,
            "oracle": None
            if self.oracle is None
            else {side: spec.as_dict() for side, spec in (("oracle", self.oracle.oracle), ("base", self.oracle.base))},
            "token_rewards": None
            if self.token_rewards is None
            else {
                "origin": self.token_rewards.origin,
                "model": None if self.token_rewards.model is None else self.token_rewards.model.as_dict(),
            },
            "ref_precompute": None
            if self.precomputed_reference is None
            else self.precomputed_reference.model.as_dict(),
        }
