"""Changes of a recipe that save memory, ordered from the least to the most intrusive, each with its saving."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sepo.errors import SepoError
from sepo.hosts.llamafactory.plan.account import Account, account_for
from sepo.hosts.llamafactory.plan.recipe import PlannedPolicy, PlannedRun, planned_run

_WORTH_NAMING = 0.01
"""Share of the peak below which a saving is omitted."""


PeakWith = Callable[[Mapping[str, Any]], float | None]
"""Returns the peak of a recipe in bytes per process; None if its keys cannot be combined."""


@dataclass(frozen=True)
class Change:
    """A change of the recipe and the memory that the run needs with it.

    Args:
        keys: recipe keys and their new values.
        effect: short description of its effect on the run.
        peak: peak bytes per process with this change alone.
        saving: bytes that it saves.
    """

    keys: dict[str, Any]
    effect: str
    peak: float
    saving: float

    @property
    def text(self) -> str:
        """The keys and values as written in a recipe."""
        return ", ".join(f"{name}: {_yaml(value)}" for name, value in self.keys.items())


def worthwhile(
    recipe: Mapping[str, Any], candidates: Iterable[tuple[dict[str, Any], str]], *, before: float, peak_with: PeakWith
) -> list[Change]:
    """Return the candidates that lower the peak, in their order.

    Args:
        recipe: keys and values.
        candidates: keys with new values, and a short description of the effect.
        before: peak of the unchanged recipe, in bytes.
        peak_with: returns the peak of a recipe.
    """
    found = []
    for keys, effect in candidates:
        after = peak_with({**recipe, **keys})
        if after is not None and before - after > _WORTH_NAMING * before:
            found.append(Change(keys, effect, after, before - after))
    return found


def enough(
    recipe: Mapping[str, Any], found: list[Change], *, limit: float, peak_with: PeakWith
) -> tuple[dict[str, Any], float] | None:
    """Find the least intrusive change that makes a run fit, or else a combination of the least intrusive ones.

    Args:
        recipe: keys and values.
        found: from ``worthwhile``.
        limit: memory of a device, in bytes.
        peak_with: returns the peak of a recipe.

    Returns:
        The keys and the peak with them; None if the run does not fit even with all changes.
    """
    for change in found:
        if change.peak <= limit:
            return change.keys, change.peak
    together: dict[str, Any] = {}
    for change in found:
        together |= change.keys
        peak = peak_with({**recipe, **together})
        if peak is not None and peak <= limit:
            return together, peak
    return None


def changes(recipe: Mapping[str, Any], account: Account, *, on_gpu: bool, tokens: int | None = None) -> list[Change]:
    """Return the single changes that lower the peak of a run on pairs, the least intrusive first.

    Args:
        recipe: keys and values.
        account: account of the unchanged recipe.
        on_gpu: as for ``account_for``.
        tokens: as for ``account_for``.
    """
    peak_with = peaks(account, on_gpu=on_gpu, tokens=tokens)
    return worthwhile(recipe, _candidates(recipe, account.run), before=account.peak.total, peak_with=peak_with)


def peaks(account: Account, *, on_gpu: bool, tokens: int | None) -> PeakWith:
    """Return the function from a changed recipe of a run on pairs to its peak; None if keys cannot be combined."""

    def peak_with(recipe: Mapping[str, Any]) -> float | None:
        try:
            run = planned_run(recipe, processes=account.run.engine.processes)
            return account_for(run, on_gpu=on_gpu, tokens=tokens).peak.total
        except SepoError:
            return None

    return peak_with


def smaller_policies(run: PlannedPolicy) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the changes with which the weights and optimizer states of a policy are smaller: keys, and the effect."""
    if run.kind != "lora" and "8bit" not in run.optimizer:
        yield {"optim": "paged_adamw_8bit"}, "optimizer states in 8 bits"
    if run.kind == "lora" and run.policy.quantization_bit is None:
        yield {"quantization_bit": 4}, "QLoRA: the policy in 4 bits"
    if run.kind != "lora":
        yield {"finetuning_type": "lora"}, "adapters are trained, not all weights"
        yield {"finetuning_type": "lora", "quantization_bit": 4}, "QLoRA"


def _candidates(recipe: Mapping[str, Any], run: PlannedRun) -> Iterator[tuple[dict[str, Any], str]]:
    settings = run.settings
    accumulated = int(recipe.get("gradient_accumulation_steps") or 1)
    if not run.checkpointing:
        yield {"disable_gradient_checkpointing": False}, "layers are recomputed in the backward pass"
    if run.checkpointing and settings.kept_bytes:
        yield {"kept_activations_mb": 0}, "nothing is kept for the backward pass of a layer"
    if settings.head_chunk_tokens is not None:
        yield {"head_chunk_tokens": None}, "64 MiB of logits at a time"
    if settings.batch_tokens is None and run.pairs > 1:
        yield {"batch_tokens": 2 * run.cutoff}, "the same steps, in smaller forward passes"
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
        yield {"oracle_model_quantization_bit": 4}, "scoring models in 4 bits"
    if settings.scores_before_training and settings.score_batch_tokens > 2 * run.cutoff:
        yield {"score_batch_tokens": 2 * run.cutoff}, "smaller scoring batches"
    yield from smaller_policies(run)
    if run.cutoff > 256:
        yield {"cutoff_len": run.cutoff // 2}, "longer rows are truncated"


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
