"""Memory account of a run: bytes by item for each phase."""

from __future__ import annotations

from dataclasses import dataclass

from sepo.console import size
from sepo.errors import SepoError, first_line
from sepo.forward.kept_results import step_limit
from sepo.forward.router_loss import refusal_by_config
from sepo.hosts.llamafactory.plan.policy import sharding, training_items
from sepo.hosts.llamafactory.plan.recipe import PlannedRun
from sepo.hosts.llamafactory.plan.weights import ModelWeights, model_weights, own_dtype
from sepo.memory.step import Pass, Row, largest_row, scoring_row, step_bytes
from sepo.objectives import StateWeight
from sepo.recipe.model_specs import ModelSpec

MIB = 2**20
GPU_CONTEXT = 600 * MIB
"""Bytes that CUDA and its libraries allocate in each process before the first tensor."""
CPU_PROCESS = 160 * MIB
"""Bytes that a training process on a CPU holds besides tensors: data, buffers of threads and of libraries (the median
of `benchmarks/plan.py`)."""
FRAGMENTATION = 0.05
"""Memory that the allocator holds in addition, as a share of the activations of a phase."""


@dataclass(frozen=True)
class Phase:
    """Phase of a run and the memory of a process at its peak.

    Args:
        name: name of the phase.
        items: bytes by item.
    """

    name: str
    items: dict[str, float]

    @property
    def total(self) -> float:
        """Sum of all items, in bytes."""
        return sum(self.items.values())


@dataclass(frozen=True)
class Account:
    """Memory that a run needs.

    Args:
        run: the run.
        parameters: number of parameters of the policy.
        trainable: number of trained weights.
        row: the largest device batch as the policy computes it.
        phases: the phases in their order.
        notes: assumptions of the estimate.
    """

    run: PlannedRun
    parameters: int
    trainable: int
    row: Row
    phases: tuple[Phase, ...]
    notes: tuple[str, ...]

    @property
    def peak(self) -> Phase:
        """Phase that needs most memory."""
        return max(self.phases, key=lambda phase: phase.total)


def account_for(run: PlannedRun, *, on_gpu: bool, tokens: int | None = None) -> Account:
    """Estimate the memory of a run.

    Args:
        run: from ``planned_run``.
        on_gpu: whether it runs on GPUs; memory besides tensors is added, for CUDA or for the process on a CPU.
        tokens: tokens of the longest device batch, with the prompt shared; None for the maximum under the cutoff.

    Returns:
        Bytes per process for each phase.

    Raises:
        SepoError: a model's configuration cannot be read, or the model cannot run on tensors without data.
    """
    try:
        return _account(run, on_gpu=on_gpu, tokens=tokens)
    except SepoError:
        raise
    except Exception as error:  # a model's own code on tensors without data
        reason = first_line(error)
        raise SepoError(f"the memory of '{run.policy.model}' cannot be estimated: {reason}") from error


def _account(run: PlannedRun, *, on_gpu: bool, tokens: int | None) -> Account:
    notes: list[str] = []
    policy = model_weights(run, run.policy, key="model_name_or_path", trained=run.trained)
    refusal = refusal_by_config(policy.config) if run.settings.router_loss_weight else None
    if refusal is not None:
        raise SepoError(refusal)
    row = _row(run, tokens)
    phases = _before_training(run)
    phases.append(_training(run, policy, row, notes))
    phases = [with_reserve(phase, on_gpu=on_gpu) for phase in phases]
    if run.on_cpu:
        phases.insert(-1, loading(policy, quantized=run.policy.quantization_bit is not None))
    return Account(run, policy.counted.parameters, policy.counted.trainable, row, tuple(phases), tuple(notes))


def _row(run: PlannedRun, tokens: int | None) -> Row:
    method = run.settings.method
    chosen = rejected = 1.0
    # By position or length, and with a share that depends on the pair (rule mean, count shorter): at most all tokens.
    if method.needs_scores and method.selector is not None and method.selector.reads_ratios:
        rejected = method.selector.rejected_ratio
        chosen = 1.0 if run.reads_chosen or method.needs_response else method.selector.chosen_ratio
    cutoff = run.cutoff if tokens is None else max(2, -(-tokens // (2 * run.pairs)))
    return largest_row(run.pairs, cutoff=cutoff, batch_tokens=run.settings.batch_tokens, share=(chosen + rejected) / 2)


def loading(policy: ModelWeights, *, quantized: bool) -> Phase:
    """Account for loading on a CPU.

    Weights are read through a memory-mapped file. Unchanged weights stay in the mapping; weights that are cast or
    quantized need memory in addition to it.
    """
    own = own_dtype(policy.config, on_cpu=False)
    items = {"policy": policy.counted.total}
    if quantized or own != policy.dtype:
        items["mapped file"] = float(policy.counted.parameters * own.itemsize)
    if quantized:
        items["quantization's library"] = float(CPU_PROCESS)
    return Phase("loading", items)


def _training(run: PlannedRun, policy: ModelWeights, row: Row, notes: list[str]) -> Phase:
    items = training_items(run, policy, notes)
    weight = run.settings.method.token_weight
    how = Pass(
        policy.dtype,
        autocast=run.autocast,
        trained=run.trained,
        checkpointing=run.checkpointing,
        head_chunk_tokens=run.settings.head_chunk_tokens,
        token_weight=weight if isinstance(weight, StateWeight) else None,
        router_loss=bool(run.settings.router_loss_weight),
    )
    activations = step_bytes(policy.config, row, how)
    if run.reference is not None:
        reference = model_weights(run, run.reference, key="ref_model")
        items["reference"] = sharding(run.engine)(reference.counted.total, 3)
        alone = Pass(reference.dtype, autocast=run.autocast, backward=False, head_chunk_tokens=how.head_chunk_tokens)
        activations = max(activations, step_bytes(reference.config, row, alone))
    items["activations, head"] = float(activations)
    if run.checkpointing and run.engine.zero < 3:
        _add_kept(items, run, policy, notes)
    if policy.counted.largest_product:
        items["unpacked matrix"] = float(policy.counted.largest_product)
    return Phase("training", items)


def _add_kept(items: dict[str, float], run: PlannedRun, policy: ModelWeights, notes: list[str]) -> None:
    """Account for the results that gradient checkpointing keeps; by default they use free memory only: a note."""
    kept = run.settings.kept_bytes
    if kept is not None:
        items["kept activations"] = float(kept)
        return
    config = getattr(policy.config, "text_config", None) or policy.config
    more = step_limit(2 * run.pairs * run.cutoff, config.vocab_size) - items["activations, head"]
    if more > 0:
        notes.append(
            f"not counted: where memory is free, up to {size(more)} of products and attention outputs are kept instead "
            "of being computed again (kept_activations_mb)."
        )


def _before_training(run: PlannedRun) -> list[Phase]:
    """Account for the scoring phases; no engine shards scoring models, so each process holds whole ones."""
    settings, phases = run.settings, []
    row = scoring_row(settings.score_batch_tokens, cutoff=run.cutoff)
    oracles = () if settings.oracles is None else settings.oracles.members  # checkpoints are as large as the oracle
    for number, oracle in enumerate(oracles, start=1):
        specs = [oracle.oracle] if oracle.one_set_of_weights else [oracle.oracle, oracle.base]
        name = "scoring by the oracle" if len(oracles) == 1 else f"scoring by oracle {number}"
        phases.append(_scoring(run, name, specs, row, key="oracle_model"))
    rewards = settings.token_rewards
    if rewards is not None and rewards.model is not None:
        phases.append(_scoring(run, "token rewards", [rewards.model], row, key=rewards.key))
    if settings.precomputed_reference is not None:
        source = settings.precomputed_reference
        phases.append(_scoring(run, "reference, before training", [source.model], row, key=source.key))
    return phases


def _scoring(run: PlannedRun, name: str, specs: list[ModelSpec], row: Row, *, key: str) -> Phase:
    items: dict[str, float] = {}
    making, unpacked = 0, 0
    for number, spec in enumerate(specs):
        model = model_weights(run, spec, key="oracle_base_model" if number else key)
        items["oracle's base" if number else "scoring model"] = model.counted.total
        how = Pass(model.dtype, backward=False, head_chunk_tokens=run.settings.head_chunk_tokens)
        making = max(making, step_bytes(model.config, row, how))
        unpacked = max(unpacked, model.counted.largest_product)
    items["activations, head"] = float(making)
    if unpacked:
        items["unpacked matrix"] = float(unpacked)
    return Phase(name, items)


def with_reserve(phase: Phase, *, on_gpu: bool) -> Phase:
    """Return a phase with the memory besides tensors: CUDA and fragmentation, or that of the process on a CPU."""
    if not on_gpu:
        return Phase(phase.name, {**phase.items, "process": float(CPU_PROCESS)})
    making = sum(size for name, size in phase.items.items() if name.startswith("activations"))
    return Phase(phase.name, {**phase.items, "CUDA": float(GPU_CONTEXT), "fragmentation": FRAGMENTATION * making})
