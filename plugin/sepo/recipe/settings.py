"""Settings of a run of a sepo stage: one frozen object, resolved before any model is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from sepo.objectives import Method
from sepo.objectives.token_weights import weight_record
from sepo.recipe.model_specs import ModelSpec, OracleSet, OracleSpec
from sepo.recipe.overview import Overview
from sepo.recipe.reference import OWN_START, PrecomputedReference, runs_reference

RewardOrigin = Literal["prompts", "oracle"]
"""Source of T-REG's token rewards. ``prompts``: rewards. ``oracle``: an oracle's log-ratios s, whose rewards are
sigmoid(s) - 0.5."""


@dataclass(frozen=True)
class TokenRewardSource:
    """Source of T-REG's token rewards.

    Args:
        origin: ``prompts`` (the paper's contrastive prompts) or ``oracle`` (sigmoid of the oracle's log-ratio - 0.5).
        model: the scoring model for prompts; None if the oracle gives the rewards.
        key: the recipe key that names this model.
    """

    origin: RewardOrigin
    model: ModelSpec | None = None
    key: str = ""


@dataclass(frozen=True)
class RunSettings:
    """Settings of a stage in addition to the host's arguments.

    Args:
        stage: name in the recipe.
        method: the resolved objective with its selection.
        oracles: the oracles with their bases, or None if none is used.
        token_scores_dir: root of the score stores, or None for the default.
        score_batch_tokens: padded tokens per scoring batch.
        head_chunk_tokens: number of tokens whose logits are in memory at a time, or None for 64 MiB of logits.
        batch_tokens: maximum number of tokens in one forward pass of the policy, or None for the device batch.
        kept_activations_mb: megabytes of results that gradient checkpointing keeps, or None for the default.
        router_loss_weight: weight of the load-balancing loss of a mixture of experts; 0 for none.
        notes: lines of the first screen about keys, e.g. those that this stage does not use.
        token_rewards: source of T-REG's token rewards, or None if nothing reads them.
        precomputed_reference: the reference whose log-probabilities are stored before training, or None if the
            reference, if needed, runs during training.
        ref_model: the reference, if the recipe names one and it runs during training.
        credit_data: rows with marked errors, on which the scores are measured before training, or None.
        overview: what the recipe was resolved to, for the first screen; not compared, as it names the keys of the host.
    """

    stage: str
    method: Method
    oracles: OracleSet | None
    token_scores_dir: str | None
    score_batch_tokens: int
    head_chunk_tokens: int | None
    batch_tokens: int | None = None
    kept_activations_mb: int | None = None
    router_loss_weight: float = 0.0
    notes: tuple[str, ...] = ()
    token_rewards: TokenRewardSource | None = None
    precomputed_reference: PrecomputedReference | None = None
    ref_model: ModelSpec | None = None
    credit_data: str | None = None
    overview: Overview | None = field(default=None, compare=False)

    @property
    def oracle(self) -> OracleSpec | None:
        """The oracle and its base, the first of several, or None."""
        return None if self.oracles is None else self.oracles.first

    def with_oracle(self, oracle: OracleSpec) -> RunSettings:
        """Return the settings with one oracle, whose log-ratios are the scores."""
        return replace(self, oracles=OracleSet((oracle,)))

    @property
    def kept_bytes(self) -> int | None:
        """Maximum number of bytes of results that gradient checkpointing keeps, or None for the default."""
        return None if self.kept_activations_mb is None else self.kept_activations_mb * 10**6

    @property
    def first_screen(self) -> str:
        """What the recipe was resolved to, the hyperparameters that are not the objective's, and the notes."""
        return "" if self.overview is None else self.overview.text(self.notes)

    @property
    def runs_reference(self) -> bool:
        """Whether a reference runs during training: the method needs one, and it is not precomputed."""
        return runs_reference(self.method, self.precomputed_reference)

    @property
    def reference_is_start(self) -> bool:
        """Whether the reference is the policy before training; False without a reference."""
        if self.precomputed_reference is not None:
            return self.precomputed_reference.key == OWN_START
        return self.method.needs_reference and self.ref_model is None

    @property
    def prompts_for_rewards(self) -> bool:
        """Whether token rewards come from contrastive prompts, which quote the conversation."""
        return self.token_rewards is not None and self.token_rewards.origin == "prompts"

    @property
    def scores_before_training(self) -> bool:
        """Whether per-token values are computed before training and kept in a score store."""
        return (
            self.oracles is not None
            or self.prompts_for_rewards
            or self.precomputed_reference is not None
            or self.method.token_scorer.from_batch is not None
        )

    @property
    def _rejected_end(self) -> str:
        """End of the scores that is selected in rejected responses; in chosen ones it is always the highest."""
        return "highest" if self.method.token_scorer.rejected_largest else "lowest"

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values, for the run's ``output_dir``."""
        return {
            "stage": self.stage,
            "objective": self.method.name,
            **({"factors": dict(self.method.factors)} if self.method.added else {}),
            "reference": self.method.needs_reference,
            "hyperparameters": dict(self.method.hyperparameters),
            "token_scorer": self.method.scorer,
            "select": None if self.method.selector is None else asdict(self.method.selector),
            "rejected_selects": None if self.method.selector is None else self._rejected_end,
            "token_weight": None if self.method.token_weight is None else weight_record(self.method.token_weight),
            **({} if self.method.token_weight is None else {"reward_scale": self.method.reward.scale}),
            "oracle": None if self.oracle is None else self.oracle.as_dict(),
            **({} if self.oracles is None or self.oracles.plain else {"oracles": self.oracles.as_dict()}),
            "token_rewards": None
            if self.token_rewards is None
            else {
                "origin": self.token_rewards.origin,
                "model": None if self.token_rewards.model is None else self.token_rewards.model.as_dict(),
            },
            "ref_precompute": None
            if self.precomputed_reference is None
            else self.precomputed_reference.model.as_dict(),
            **({} if self.credit_data is None else {"credit_data": self.credit_data}),
        }
