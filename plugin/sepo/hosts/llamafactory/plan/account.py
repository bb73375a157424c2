"""The account: bytes by item for each phase of a run."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sepo.errors import SepoError
from sepo.hosts.llamafactory.plan.recipe import Engine, PlannedRun, model_config
from sepo.memory.shapes import NOTHING_TRAINS, Trained, WeightBytes, model_with, weight_bytes
from sepo.memory.step import Pass, Row, largest_row, scoring_row, step_bytes
from sepo.recipe.settings import ModelSpec

MIB = 2**20
GPU_CONTEXT = 600 * MIB
"""What CUDA and its libraries hold in each process before the first tensor."""
CPU_PROCESS = 160 * MIB
"""What a process on a CPU holds beside tensors once it has tokenized and trains: data, buffers of threads and of
libraries (the median of `benchmarks/plan.py`)."""
FRAGMENTATION = 0.05
"""Share of what a phase makes and frees that the allocator holds beyond it."""

_OPTIMIZER_BYTES = {"sgd": 0.0, "adafactor": 0.1, "lion": 4.0, "rmsprop": 4.0, "adagrad": 4.0, "adamw": 8.0}
"""Bytes of states per trained weight, in 32 bits."""


@dataclass(frozen=True)
class Phase:
    """A phase of a run and what is in memory at its peak, per process.

    Args:
        name: of the phase.
        items: bytes by what they are for.
    """

    name: str
    items: dict[str, float]

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self.items.values())


@dataclass(frozen=True)
class Account:
    """What a run needs.

    Args:
        run: the run.
        parameters: of the policy.
        trainable: weights that train.
        row: the largest device batch as it goes through the policy.
        phases: in their order.
        notes: what was assumed.
    """

    run: PlannedRun
    parameters: int
    trainable: int
    row: Row
    phases: tuple[Phase, ...]
    notes: tuple[str, ...]

    @property
    def peak(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.total)


@dataclass(frozen=True)
class _Weights:
    config: Any
    dtype: torch.dtype
    counted: WeightBytes


def account_for(run: PlannedRun, *, on_gpu: bool, tokens: int | None = None) -> Account:
    """Account for a run.

    Args:
        run: from ``planned_run``.
        on_gpu: whether it runs on GPUs; what a GPU, or else a process, needs beside tensors is added.
        tokens: of the longest device batch, prompt shared; None for what the cutoff allows.

    Returns:
        Bytes per process, phase by phase.

    Raises:
        SepoError: a model's configuration cannot be read, or the model does not run on tensors without data.
    """
    try:
        return _account(run, on_gpu=on_gpu, tokens=tokens)
    except SepoError:
        raise
    except Exception as error:  # a model's own code on tensors without data
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SepoError(f"no account can be made for '{run.policy.model}': {reason}") from error


def _account(run: PlannedRun, *, on_gpu: bool, tokens: int | None) -> Account:
    notes: list[str] = []
    policy = _weights(run, run.policy, key="model_name_or_path", policy=True)
    row = _row(run, tokens)
    phases = _before_training(run)
    phases.append(_training(run, policy, row, notes))
    phases = [_with_reserve(phase, on_gpu=on_gpu) for phase in phases]
    if run.on_cpu:
        phases.insert(-1, _loading(policy, quantized=run.policy.quantization_bit is not None))
    return Account(run, policy.counted.parameters, policy.counted.trainable, row, tuple(phases), tuple(notes))


def _row(run: PlannedRun, tokens: int | None) -> Row:
    method = run.settings.method
    chosen = rejected = 1.0
    if method.needs_scores and method.selector is not None:
        rejected = method.selector.rejected_ratio
        chosen = 1.0 if run.reads_chosen or method.needs_response else method.selector.chosen_ratio
    cutoff = run.cutoff if tokens is None else max(2, -(-tokens // (2 * run.pairs)))
    return largest_row(run.pairs, cutoff=cutoff, batch_tokens=run.settings.batch_tokens, share=(chosen + rejected) / 2)


def _weights(run: PlannedRun, spec: ModelSpec, *, key: str, policy: bool = False) -> _Weights:
    config = model_config(spec.model, key=key, trust_remote_code=run.trust_remote_code)
    dtype = run.dtype or _own_dtype(config, on_cpu=run.on_cpu)
    trained = run.trained if policy else NOTHING_TRAINS
    bits = _packed_bits(config) or spec.quantization_bit
    words = config.to_json_string(use_diff=False)
    counted = _counted(words, config.__class__, dtype, trained, bits, run.double_quantization)
    return _Weights(config, dtype, counted)


@functools.lru_cache(maxsize=64)
def _counted(
    config: str, kind: Any, dtype: torch.dtype, trained: Trained, bits: int | None, double: bool
) -> WeightBytes:
    model = model_with(kind.from_dict(json.loads(config)), dtype, trained)
    return weight_bytes(model, quantization_bit=bits, double_quantization=double)


def _packed_bits(config: Any) -> int | None:
    """Bits of weights that are quantized in the checkpoint."""
    given: Any = getattr(config, "quantization_config", None)
    values = given if isinstance(given, dict) else given.to_dict() if hasattr(given, "to_dict") else {}
    if values.get("load_in_4bit") or values.get("load_in_8bit"):
        return 4 if values.get("load_in_4bit") else 8
    return int(values["bits"]) if values.get("bits") else None


def _own_dtype(config: Any, *, on_cpu: bool) -> torch.dtype:
    own = getattr(config, "dtype", None) or torch.float32
    own = getattr(torch, own) if isinstance(own, str) else own
    return torch.float32 if on_cpu else own


def _loading(policy: _Weights, *, quantized: bool) -> Phase:
    """On a CPU weights are read through the mapped file: they stay there where nothing about them changes, and are
    beside it where they are cast or packed."""
    own = _own_dtype(policy.config, on_cpu=False)
    items = {"policy": policy.counted.total}
    if quantized or own != policy.dtype:
        items["mapped file"] = float(policy.counted.parameters * own.itemsize)
    if quantized:
        items["quantization's library"] = float(CPU_PROCESS)
    return Phase("loading", items)


def _training(run: PlannedRun, policy: _Weights, row: Row, notes: list[str]) -> Phase:
    counted, engine = policy.counted, run.engine
    shard = _sharding(engine)
    lora = run.kind == "lora"
    items = {
        "policy": shard(counted.frozen, 3) if lora else 0.0,
        "trained weights": shard(counted.trained, 3),
        "gradients": shard(counted.trained, 2),
        f"optimizer ({run.optimizer})": 0.0
        if engine.optimizer_offloaded
        else shard(counted.trainable * _optimizer_bytes(run.optimizer, notes), 1),
    }
    if engine.weights_offloaded:
        items["policy"] = items["trained weights"] = 0.0
    if engine.zero and not run.on_cpu and run.autocast is not None:
        items["float32 copies"] = 0.0 if engine.optimizer_offloaded else shard(counted.trainable * 4.0, 1)
    if engine.zero == 3:
        items["gathered layers"] = 2 * counted.largest_layer
    elif engine.processes > 1:
        items["gradient buckets"] = counted.trained
    how = Pass(
        policy.dtype,
        autocast=run.autocast,
        trained=run.trained,
        checkpointing=run.checkpointing,
        head_chunk_tokens=run.settings.head_chunk_tokens,
    )
    activations = step_bytes(policy.config, row, how)
    if run.reference is not None:
        reference = _weights(run, run.reference, key="ref_model")
        items["reference"] = shard(reference.counted.total, 3)
        alone = Pass(reference.dtype, autocast=run.autocast, backward=False, head_chunk_tokens=how.head_chunk_tokens)
        activations = max(activations, step_bytes(reference.config, row, alone))
    items["activations, head"] = float(activations)
    if counted.largest_product:
        items["unpacked matrix"] = float(counted.largest_product)
    if run.kind == "freeze":
        notes.append("freeze tuning is counted as if all weights trained.")
    return Phase("training", items)


def _sharding(engine: Engine) -> Callable[[float, int], float]:
    """Bytes per process of what is spread from a ZeRO stage on."""
    return lambda size, stage: size / engine.processes if engine.zero >= stage else size


def _optimizer_bytes(name: str, notes: list[str]) -> float:
    kind = next((known for known in _OPTIMIZER_BYTES if known in name), None)
    if kind is None:
        notes.append(f"optimizer {name} is counted as AdamW.")
    states = _OPTIMIZER_BYTES[kind or "adamw"]
    if name.startswith("paged_"):
        notes.append(f"{name} may move its states out of the GPU; they are counted.")
    return states / 4 if "8bit" in name else states


def _before_training(run: PlannedRun) -> list[Phase]:
    """Scoring models are whole in every process, whatever the engine."""
    settings, phases = run.settings, []
    row = scoring_row(settings.score_batch_tokens, cutoff=run.cutoff)
    if settings.oracle is not None:
        specs = [settings.oracle.oracle]
        if not settings.oracle.one_set_of_weights:
            specs.append(settings.oracle.base)
        phases.append(_scoring(run, "scoring by the oracle", specs, row, key="oracle_model"))
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
        model = _weights(run, spec, key="oracle_base_model" if number else key)
        items["oracle's base" if number else "scoring model"] = model.counted.total
        how = Pass(model.dtype, backward=False, head_chunk_tokens=run.settings.head_chunk_tokens)
        making = max(making, step_bytes(model.config, row, how))
        unpacked = max(unpacked, model.counted.largest_product)
    items["activations, head"] = float(making)
    if unpacked:
        items["unpacked matrix"] = float(unpacked)
    return Phase(name, items)


def _with_reserve(phase: Phase, *, on_gpu: bool) -> Phase:
    if not on_gpu:
        return Phase(phase.name, {**phase.items, "process": float(CPU_PROCESS)})
    making = sum(size for name, size in phase.items.items() if name.startswith("activations"))
    return Phase(phase.name, {**phase.items, "CUDA": float(GPU_CONTEXT), "fragmentation": FRAGMENTATION * making})
