"""Bytes of a policy in training by item: weights, gradients and optimizer states, as an engine shards them."""

from __future__ import annotations

from collections.abc import Callable

from sepo.hosts.llamafactory.plan.recipe import Engine, PlannedPolicy
from sepo.hosts.llamafactory.plan.weights import ModelWeights

GRADIENTS = "gradients"
GATHERED_LAYERS = "gathered layers"
"""Items that exist during training passes only."""

_OPTIMIZER_BYTES = {"sgd": 0.0, "adafactor": 0.1, "lion": 4.0, "rmsprop": 4.0, "adagrad": 4.0, "adamw": 8.0}
"""Bytes of optimizer states per trained weight, for states in 32 bits."""


def training_items(run: PlannedPolicy, policy: ModelWeights, notes: list[str]) -> dict[str, float]:
    """Return the bytes of a policy in one process, without activations.

    Args:
        run: how it is trained.
        policy: its weights.
        notes: gets the assumptions of the estimate.
    """
    counted, engine = policy.counted, run.engine
    shard = sharding(engine)
    items = {
        "policy": shard(counted.frozen, 3) if run.kind == "lora" else 0.0,
        "trained weights": shard(counted.trained, 3),
        GRADIENTS: shard(counted.trained, 2),
        f"optimizer ({run.optimizer})": 0.0
        if engine.optimizer_offloaded
        else shard(counted.trainable * optimizer_bytes(run.optimizer, notes), 1),
    }
    if engine.weights_offloaded:
        items["policy"] = items["trained weights"] = 0.0
    if engine.zero and not run.on_cpu and run.autocast is not None:
        items["float32 copies"] = 0.0 if engine.optimizer_offloaded else shard(counted.trainable * 4.0, 1)
    if engine.zero == 3:
        items[GATHERED_LAYERS] = 2 * counted.largest_layer
    elif engine.processes > 1:
        items["gradient buckets"] = counted.trained
    if run.kind == "freeze":
        notes.append("freeze tuning is counted as if all weights were trained.")
    return items


def sharding(engine: Engine) -> Callable[[float, int], float]:
    """Return the function from total bytes and the ZeRO stage from which they are sharded to bytes per process."""
    return lambda size, stage: size / engine.processes if engine.zero >= stage else size


def optimizer_bytes(name: str, notes: list[str]) -> float:
    """Return the bytes of an optimizer's states per trained weight; ``notes`` gets assumptions."""
    kind = next((known for known in _OPTIMIZER_BYTES if known in name), None)
    if kind is None:
        notes.append(f"optimizer {name} is counted as AdamW.")
    states = _OPTIMIZER_BYTES[kind or "adamw"]
    if name.startswith("paged_"):
        notes.append(f"{name} may move its states out of GPU memory; they are counted.")
    return states / 4 if "8bit" in name else states
