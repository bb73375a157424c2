"""Memory of the models of a judge."""

from __future__ import annotations

from dataclasses import dataclass

from sepo.hosts.llamafactory.plan.recipe import HowLoaded
from sepo.hosts.llamafactory.plan.weights import model_weights
from sepo.memory.step import Pass, Row, step_bytes
from sepo.recipe.response_rewards import RewardSettings

_NAMES = {"judge_model": "reward model", "model_name_or_path": "policy", "ref_model": "reference"}


@dataclass(frozen=True)
class JudgeMemory:
    """Bytes of a judge that loads models.

    Args:
        models: bytes of the weights of each model.
        activations: the largest number of bytes in addition.
        unpacked: bytes of the largest quantized matrix after dequantization; 0 without quantization.
    """

    models: dict[str, float]
    activations: int
    unpacked: int


def judge_memory(how: HowLoaded, rewards: RewardSettings, row: Row) -> JudgeMemory:
    """Account for the models of a judge; a reward model has one output in place of the head.

    Args:
        how: how the models are loaded.
        rewards: the judge, which is no verifier.
        row: the largest batch.

    Raises:
        SepoError: a configuration cannot be read.
    """
    if rewards.model is not None:
        specs, row = {"judge_model": rewards.model}, Row(row.pairs, selected=1)
    else:
        assert rewards.policy is not None
        specs = {"model_name_or_path": rewards.policy.oracle}
        if not rewards.policy.one_set_of_weights:
            specs["ref_model"] = rewards.policy.base
    models: dict[str, float] = {}
    activations = unpacked = 0
    for key, spec in specs.items():
        weights = model_weights(how, spec.with_adapters(0), key=key)
        models[_NAMES[key]] = weights.counted.total
        if rewards.model is not None and not getattr(weights.config, "tie_word_embeddings", False):
            models[_NAMES[key]] -= weights.config.vocab_size * weights.config.hidden_size * weights.dtype.itemsize
        once = Pass(weights.dtype, backward=False, head_chunk_tokens=rewards.head_chunk_tokens)
        activations = max(activations, step_bytes(weights.config, row, once))
        unpacked = max(unpacked, weights.counted.largest_product)
    return JudgeMemory(models, activations, unpacked)
