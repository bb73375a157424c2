"""Output of `sepo plan` for stage `rto`: lines about a run, and changes of its recipe that save memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sepo.errors import SepoError
from sepo.hosts.llamafactory.plan.changes import Change, enough, smaller_policies, worthwhile
from sepo.hosts.llamafactory.plan.report import engine_line, policy_line
from sepo.hosts.llamafactory.plan.rto import PlannedRto, RtoAccount, planned_rto, rto_account
from sepo.recipe.rto import RtoMethod


def rto_headline(account: RtoAccount) -> list[str]:
    """Return lines that describe the run: policy, responses, largest batch and engine."""
    run, batch = account.run, account.batch
    return [
        policy_line(run, account.parameters, account.trainable),
        f"sampled at once: {run.sampled:,} responses of {batch.new_tokens:,} tokens to prompts of {batch.prompt:,}",
        f"largest batch: {batch.rows:,} responses at a time, {batch.tokens:,} tokens through the layers, "
        f"{batch.selected:,} through the head; gradient checkpointing {'on' if run.checkpointing else 'off'}",
        engine_line(run),
    ]


def rto_savings(
    recipe: Mapping[str, Any], account: RtoAccount, *, limit: float | None, on_gpu: bool
) -> tuple[list[Change], tuple[dict[str, Any], float] | None]:
    """Return single changes, and the change that makes a run fit; neither if the run already fits.

    Args:
        recipe: keys and values.
        account: account of the unchanged recipe.
        limit: bytes that a process may use, or None.
        on_gpu: as for ``rto_account``.
    """
    if limit is not None and account.peak.total <= limit:
        return [], None

    def peak_with(changed: Mapping[str, Any]) -> float | None:
        try:
            run = planned_rto(changed, processes=account.run.engine.processes)
            return rto_account(run, on_gpu=on_gpu).peak.total
        except SepoError:  # the keys cannot be combined in this recipe
            return None

    found = worthwhile(recipe, _candidates(account.run), before=account.peak.total, peak_with=peak_with)
    return found, None if limit is None else enough(recipe, found, limit=limit, peak_with=peak_with)


def _candidates(run: PlannedRto) -> Iterator[tuple[dict[str, Any], str]]:
    settings, rto = run.settings, run.settings.rto
    accumulated = run.accumulated
    longest = run.cutoff + rto.max_new_tokens
    if not run.checkpointing:
        yield {"disable_gradient_checkpointing": False}, "layers are recomputed in the backward pass"
    if rto.head_chunk_tokens is not None:
        yield {"head_chunk_tokens": None}, "64 MiB of logits at a time"
    if run.rows > 1:
        yield (
            {"per_device_train_batch_size": 1, "gradient_accumulation_steps": run.rows * accumulated},
            "the same global batch",
        )
    if settings.score_batch_tokens > longest:
        yield {"score_batch_tokens": longest}, "smaller scoring batches"
    if settings.oracle is not None and settings.oracle.oracle.quantization_bit is None:
        yield {"oracle_model_quantization_bit": 4}, "scoring models in 4 bits"
    if run.reference is not None and run.reference.quantization_bit is None and settings.ref_model is not None:
        yield {"ref_model_quantization_bit": 4}, "a reference in 4 bits"
    yield from smaller_policies(run)
    half = run.rows * accumulated // 2
    if half and half * run.engine.processes % rto.samples == 0:
        yield (
            {"per_device_train_batch_size": 1, "gradient_accumulation_steps": half},
            "half of the responses in a step",
        )
    if rto.iterations > 1:
        yield {"rto_iterations": RtoMethod.iterations}, "one step on each batch of responses"
    if rto.max_new_tokens > 256:
        yield {"rto_max_new_tokens": rto.max_new_tokens // 2}, "longer responses are cut off"
    if run.cutoff > 256:
        yield {"cutoff_len": run.cutoff // 2}, "longer prompts are left out"
