"""Output of `sepo plan`: the account as a table, the verdict, and plain JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sepo.console import print_lines, print_table, size
from sepo.errors import SepoError
from sepo.hosts.llamafactory.plan.account import Account, Phase, account_for
from sepo.hosts.llamafactory.plan.changes import Change
from sepo.hosts.llamafactory.plan.recipe import PlannedPolicy, planned_run
from sepo.hosts.llamafactory.plan.rto import RtoAccount, planned_rto, rto_account
from sepo.recipe.stage_names import RTO

UNVERIFIED = (
    "not verified on a GPU: CUDA, fragmentation, and the memory of bitsandbytes and DeepSpeed besides tensors are "
    "estimates; for measurements on a CPU, see benchmarks/results/plan-*.json."
)


def headline(account: Account) -> list[str]:
    """Return lines that describe the run: policy, largest batch and engine."""
    run, row = account.run, account.row
    pairs = len(row.pairs)
    return [
        policy_line(run, account.parameters, account.trainable),
        f"largest batch: {pairs} pair{'s' * (pairs > 1)} at a time, {row.tokens:,} tokens through the layers, "
        f"{row.selected:,} through the head; gradient checkpointing {'on' if run.checkpointing else 'off'}",
        engine_line(run),
    ]


def policy_line(run: PlannedPolicy, parameters: int, trainable: int) -> str:
    """Return a line about the policy and how it is trained."""
    bits = run.policy.quantization_bit
    kind = {"lora": "LoRA" if bits is None else f"QLoRA, {bits} bits"}.get(run.kind, run.kind)
    return (
        f"policy: {run.policy.model}, {parameters / 1e9:.2f} B parameters, {kind}, {trainable / 1e6:,.1f} M trainable"
        + (" (adapters)" if run.kind == "lora" else "")
    )


def engine_line(run: PlannedPolicy) -> str:
    """Return a line about the engine."""
    return f"engine: {run.engine.name}" + (f", {run.engine.processes} processes" if run.engine.processes > 1 else "")


def print_plan(
    account: Account | RtoAccount,
    heading: list[str],
    *,
    limit: float | None,
    where: str,
    on_gpu: bool,
    found: list[Change],
    fitting: tuple[dict[str, Any], float] | None,
) -> None:
    """Print the account, whether the run fits, and the changes that save memory.

    Args:
        account: the account.
        heading: lines that describe the run.
        limit: bytes that a process may use, or None.
        where: description of the device with that limit.
        on_gpu: whether the run is planned for a GPU.
        found: single changes.
        fitting: the change that makes the run fit, and the peak with it.
    """
    print_lines(heading)
    print_phases(account.phases)
    lines = [verdict(account.peak, limit=limit, where=where)]
    if found:
        lines.append("changes that lower the peak, the least intrusive first:")
        lines += [f"  {change.text}  saves {size(change.saving)} ({change.effect})" for change in found]
    if limit is not None and account.peak.total > limit:
        lines.append(advice(fitting))
    lines += [f"- {note}" for note in account.notes]
    if on_gpu:
        lines.append(f"- {UNVERIFIED}")
    print_lines(lines)


def print_phases(phases: Sequence[Phase]) -> None:
    """Print the items of phases, side by side."""
    names = list(dict.fromkeys(name for phase in phases for name in phase.items))
    print_table(
        None,
        ["per process", *(phase.name for phase in phases)],
        [[name, *(size(phase.items[name]) if name in phase.items else "" for phase in phases)] for name in names],
        footer=["total", *(size(phase.total) for phase in phases)],
    )


def peak_in_words(recipe: Mapping[str, Any]) -> str:
    """Return the planned memory of the largest phase of a run that is one of several.

    It is ``-`` if `sepo plan` does not support the run, or its models are whole ones that no step has made yet.
    """
    try:
        if recipe.get("stage") == RTO:
            sampled = planned_rto(recipe)
            return size(rto_account(sampled, on_gpu=not sampled.on_cpu).peak.total)
        planned = planned_run(recipe)
        return size(account_for(planned, on_gpu=not planned.on_cpu).peak.total)
    except SepoError:
        return "-"


def verdict(peak: Phase, *, limit: float | None, where: str) -> str:
    """Return the phase with the peak, and whether it fits."""
    line = f"peak: {peak.name}, {size(peak.total)}"
    if limit is None:
        return f"{line}. Pass the memory of your device to check whether it fits: --gpu 24GiB"
    if peak.total <= limit:
        return f"{line}: fits {where} ({size(limit)}), {size(limit - peak.total)} left"
    return f"{line}: does not fit {where} ({size(limit)}), {size(peak.total - limit)} too much"


def advice(fitting: tuple[dict[str, Any], float] | None) -> str:
    """Return a line with the change that makes a run fit."""
    if fitting is None:
        return "no change of the recipe makes it fit: use a smaller model, a larger device, or ZeRO-3 on several."
    keys, peak = fitting
    return f"fits with {Change(keys, '', peak, 0.0).text} ({size(peak)})"


def phase_values(phases: Sequence[Phase], peak: Phase) -> dict[str, Any]:
    """Return phases as plain JSON values, with sizes in bytes per process."""
    return {
        "phases": [{"name": phase.name, "items": phase.items, "total": phase.total} for phase in phases],
        "peak": {"phase": peak.name, "bytes": peak.total},
    }


def plan_values(
    account: Account | RtoAccount,
    *,
    limit: float | None,
    found: list[Change],
    fitting: tuple[dict[str, Any], float] | None,
) -> dict[str, Any]:
    """Return the plan as plain JSON values, with sizes in bytes per process."""
    batch = account.row if isinstance(account, Account) else account.batch
    return {
        "policy": account.run.policy.model,
        "parameters": account.parameters,
        "trainable": account.trainable,
        "tokens": batch.tokens,
        "selected": batch.selected,
        "engine": account.run.engine.name,
        "processes": account.run.engine.processes,
        **phase_values(account.phases, account.peak),
        "limit": limit,
        "fits": None if limit is None else account.peak.total <= limit,
        "changes": [
            {"keys": change.keys, "effect": change.effect, "peak": change.peak, "saving": change.saving}
            for change in found
        ],
        "fits_with": None if fitting is None else {"keys": fitting[0], "peak": fitting[1]},
        "notes": list(account.notes),
    }
