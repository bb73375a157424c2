"""Memory of `sepo pairs`: of sampling and of judging, from a recipe and the models' configurations alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sepo.errors import SepoError, first_line
from sepo.hosts.llamafactory.hub import policy_in
from sepo.hosts.llamafactory.plan.account import Phase, with_reserve
from sepo.hosts.llamafactory.plan.judge import judge_memory
from sepo.hosts.llamafactory.plan.recipe import cutoff_of, how_loaded
from sepo.hosts.llamafactory.plan.weights import ModelWeights, model_weights
from sepo.memory.generation import SampledBatch, generation_bytes, largest_batches
from sepo.memory.step import scoring_row
from sepo.pairs.settings import PairsSettings, pairs_settings
from sepo.recipe.keys import PAIRS_KEYS
from sepo.recipe.response_rewards import RewardSettings, resolve_rewards


@dataclass(frozen=True)
class PairsAccount:
    """Memory that `sepo pairs` needs.

    Args:
        model: name of the model that samples.
        parameters: number of its parameters.
        batch: the batch of longest prompts.
        batch_tokens: tokens per batch.
        phases: sampling, and judging unless the judge loads no model; each after the model of the one before is freed.
        notes: assumptions of the estimate.
    """

    model: str
    parameters: int
    batch: SampledBatch
    batch_tokens: int
    phases: tuple[Phase, ...]
    notes: tuple[str, ...]

    @property
    def peak(self) -> Phase:
        """Phase that needs most memory."""
        return max(self.phases, key=lambda phase: phase.total)


def samples_pairs(recipe: Mapping[str, Any]) -> bool:
    """Return whether a recipe has keys of `sepo pairs`; a judge may be that of its stage."""
    names = PAIRS_KEYS if recipe.get("stage") else (*PAIRS_KEYS, "judge")
    return any(recipe.get(name) is not None for name in names)


def pairs_account(recipe: Mapping[str, Any], *, on_gpu: bool) -> PairsAccount:
    """Estimate the memory of sampling and judging.

    Args:
        recipe: keys and values of `sepo pairs`.
        on_gpu: whether it runs on GPUs; memory besides tensors is added, for CUDA or for the process on a CPU.

    Raises:
        SepoError: a key is invalid, a configuration cannot be read, or a model cannot run on tensors without data.
    """
    settings, rewards = pairs_settings(recipe), resolve_rewards(recipe)
    if not recipe.get("model_name_or_path"):
        raise SepoError("model_name_or_path is missing; set it to the model that samples.")
    try:
        return _account(recipe, settings, rewards, on_gpu=on_gpu)
    except SepoError:
        raise
    except Exception as error:  # a model's own code on tensors without data
        name = recipe["model_name_or_path"]
        raise SepoError(f"the memory of sampling from '{name}' cannot be estimated: {first_line(error)}") from error


def _account(
    recipe: Mapping[str, Any], settings: PairsSettings, rewards: RewardSettings, *, on_gpu: bool
) -> PairsAccount:
    how, policy, prompt = how_loaded(recipe), policy_in(recipe).with_adapters(0), cutoff_of(recipe)
    weights = model_weights(how, policy, key="model_name_or_path")
    decoding = settings.decoding
    batches = largest_batches(
        settings.batch_tokens, prompt=prompt, new_tokens=decoding.max_new_tokens, nucleus=decoding.top_p < 1
    )
    notes = [f"prompts are counted with up to {prompt:,} tokens (cutoff_len); longer ones are not cut."]
    phases = [_sampling(weights, batches)]
    row = scoring_row(rewards.batch_tokens, cutoff=prompt + decoding.max_new_tokens)
    if rewards.is_verifier:
        notes.append(f"judge {rewards.judge} loads no model.")
    else:
        judge = judge_memory(how, rewards, row)
        items = {**judge.models, "activations": float(judge.activations)}
        phases.append(Phase("judging", _with_unpacked(items, judge.unpacked)))
    return PairsAccount(
        policy.model,
        weights.counted.parameters,
        batches[0],
        settings.batch_tokens,
        tuple(with_reserve(phase, on_gpu=on_gpu) for phase in phases),
        tuple(notes),
    )


def _sampling(weights: ModelWeights, batches: tuple[SampledBatch, ...]) -> Phase:
    found = [generation_bytes(weights.config, batch, weights.dtype) for batch in batches]
    most = max(found, key=lambda each: each.cache + each.activations)
    items = {
        "policy": weights.counted.total,
        "keys and values": float(most.cache),
        "activations, logits": float(most.activations),
    }
    return Phase("sampling", _with_unpacked(items, weights.counted.largest_product))


def _with_unpacked(items: dict[str, float], product: int) -> dict[str, float]:
    return {**items, **({"unpacked matrix": float(product)} if product else {})}
