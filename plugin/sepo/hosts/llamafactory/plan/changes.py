"""Changes of a recipe that save memory, the gentlest first, each with what it saves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sepo.errors import SepoError
from sepo.hosts.llamafactory.plan.account import Account, account_for
from sepo.hosts.llamafactory.plan.recipe import PlannedRun, planned_run

_WORTH_NAMING = 0.01
"""Share of the peak below which a saving is left out."""


@dataclass(frozen=True)
class Change:
    """A change and what the run needs with it.

    Args:
        keys: recipe keys and their new values.
        effect: what it costs the user, in a few words.
        peak: bytes per process with this change alone.
        saving: bytes that it saves.
    """

    keys: dict[str, Any]
    effect: str
    peak: float
    saving: float

    @property
    def text(self) -> str:
        """The keys as they are written."""
        return ", ".join(f"{name}: {_yaml(value)}" for name, value in self.keys.items())


def changes(recipe: Mapping[str, Any], account: Account, *, on_gpu: bool, tokens: int | None = None) -> list[Change]:
    """Single changes that lower the peak, the gentlest first.

    Args:
        recipe: keys and values.
        account: of the recipe as it is.
        on_gpu: as for ``account_for``.
        tokens: as for ``account_for``.
    """
    before, found = account.peak.total, []
    for keys, effect in _candidates(recipe, account.run):
        after = _peak({**recipe, **keys}, account.run, on_gpu=on_gpu, tokens=tokens)
        if after is not None and before - after > _WORTH_NAMING * before:
            found.append(Change(keys, effect, after, before - after))
    return found


def enough(
    recipe: Mapping[str, Any],
    account: Account,
    found: list[Change],
    *,
    limit: float,
    on_gpu: bool,
    tokens: int | None = None,
) -> tuple[dict[str, Any], float] | None:
    """The gentlest change that makes a run fit, or else the gentlest ones together.

    Args:
        recipe: keys and values.
        account: of the recipe as it is.
        found: from ``changes``.
        limit: bytes of a device.
        on_gpu: as for ``account_for``.
        tokens: as for ``account_for``.

    Returns:
        The keys and the peak with them; None where even all together do not fit.
    """
    for change in found:
        if change.peak <= limit:
            return change.keys, change.peak
    together: dict[str, Any] = {}
    for change in found:
        together |= change.keys
        peak = _peak({**recipe, **together}, account.run, on_gpu=on_gpu, tokens=tokens)
        if peak is not None and peak <= limit:
            return together, peak
    return None


def _peak(recipe: dict[str, Any], before: PlannedRun, *, on_gpu: bool, tokens: int | None) -> float | None:
    try:
        run = planned_run(recipe, processes=before.engine.processes)
        return account_for(run, on_gpu=on_gpu, tokens=tokens).peak.total
    except SepoError:  # keys that do not go together in this recipe
        return None


def _candidates(recipe: Mapping[str, Any], run: PlannedRun) -> Iterator[tuple[dict[str, Any], str]]:
    settings = run.settings
    accumulated = int(recipe.get("gradient_accumulation_steps") or 1)
    if not run.checkpointing:
        yield {"disable_gradient_checkpointing": False}, "layers are computed again in the backward pass"
    if settings.head_chunk_tokens is not None:
        yield {"head_chunk_tokens": None}, "64 MiB of logits at a time"
    if settings.batch_tokens is None and run.pairs > 1:
        yield {"batch_tokens": 2 * run.cutoff}, "the same steps, a pair of the longest at a time"
    if run.pairs > 1:
        yield (
            {"per_device_train_batch_size": 1, "gradient_accumulation_steps": run.pairs * accumulated},
            "the same global batch",
        )
    if run.reference is not None:
        yield {"ref_precompute": True}, "the reference runs once, before training"
    if run.reference is not None and run.reference.quantization_bit is None:
        yield {"ref_model_quantization_bit": 4}, "a reference in 4 bits"
    if settings.oracle is not None and settings.oracle.oracle.quantization_bit is None:
        yield {"oracle_model_quantization_bit": 4}, "scores by models in 4 bits"
    if settings.scores_before_training and settings.score_batch_tokens > 2 * run.cutoff:
        yield {"score_batch_tokens": 2 * run.cutoff}, "smaller scoring batches"
    if run.kind != "lora" and "8bit" not in run.optimizer:
        yield {"optim": "paged_adamw_8bit"}, "optimizer states in 8 bits"
    if run.kind == "lora" and run.policy.quantization_bit is None:
        yield {"quantization_bit": 4}, "QLoRA: the policy in 4 bits"
    if run.kind != "lora":
        yield {"finetuning_type": "lora"}, "adapters train, not all weights"
        yield {"finetuning_type": "lora", "quantization_bit": 4}, "QLoRA"
    if run.cutoff > 256:
        yield {"cutoff_len": run.cutoff // 2}, "longer rows are cut"


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
