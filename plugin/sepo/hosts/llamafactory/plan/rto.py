"""Memory of stage `rto`: of sampling, of scoring and judging, and of training, with all models resident in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from sepo.errors import SepoError, first_line
from sepo.hosts.llamafactory.plan.account import Phase, loading, with_reserve
from sepo.hosts.llamafactory.plan.judge import JudgeMemory, judge_memory
from sepo.hosts.llamafactory.plan.policy import GATHERED_LAYERS, GRADIENTS, sharding, training_items
from sepo.hosts.llamafactory.plan.recipe import FSDP, PlannedPolicy, number_of, planned_policy, separate_reference
from sepo.hosts.llamafactory.plan.weights import ModelWeights, model_weights
from sepo.hosts.llamafactory.recipe import host_keys
from sepo.hosts.llamafactory.rto_arguments import check_batches
from sepo.memory.generation import SampledBatch, generation_bytes
from sepo.memory.responses import Reads, Responses, responses_bytes, responses_of
from sepo.memory.shapes import NOTHING_TRAINS
from sepo.memory.step import Pass, scoring_row
from sepo.recipe.keys import as_flag
from sepo.recipe.model_specs import ModelSpec
from sepo.recipe.rto import RtoSettings, resolve_rto

_OF_POLICY = ("policy", "trained weights")


@dataclass(frozen=True)
class PlannedRto(PlannedPolicy):
    """The properties of a run of stage `rto` that determine its memory.

    Args:
        settings: the run's settings.
        reference: the reference if it is a second model, or None.
        accumulated: device batches in an optimizer step (``gradient_accumulation_steps``).
        sampled: responses that a process samples at once.
        scored: responses of a pass without gradient of policy or reference.
    """

    settings: RtoSettings
    reference: ModelSpec | None
    accumulated: int
    sampled: int
    scored: int


@dataclass(frozen=True)
class RtoAccount:
    """Memory that a run of stage `rto` needs.

    Args:
        run: the run.
        parameters: number of parameters of the policy.
        trainable: number of trained weights.
        batch: the largest device batch of a training pass.
        phases: the phases in their order; all models are in memory in each, except in that of loading.
        notes: assumptions of the estimate.
    """

    run: PlannedRto
    parameters: int
    trainable: int
    batch: Responses
    phases: tuple[Phase, ...]
    notes: tuple[str, ...]

    @property
    def peak(self) -> Phase:
        """Phase that needs most memory."""
        return max(self.phases, key=lambda phase: phase.total)


@dataclass(frozen=True)
class _Frozen:
    """The models beside the policy.

    Args:
        items: bytes of their weights.
        reference: the reference if it is a second model, or None.
        scoring: the oracle and its base; empty without an oracle.
        judge: the models of the judge, or None if it loads none.
    """

    items: dict[str, float]
    reference: ModelWeights | None
    scoring: tuple[ModelWeights, ...]
    judge: JudgeMemory | None

    @property
    def unpacked(self) -> int:
        """Bytes of the largest quantized matrix after dequantization."""
        models = (*self.scoring, *([] if self.reference is None else [self.reference]))
        products = [model.counted.largest_product for model in models]
        return max([*products, 0 if self.judge is None else self.judge.unpacked])


def planned_rto(recipe: Mapping[str, Any], *, processes: int = 1) -> PlannedRto:
    """Read the properties that determine memory from a recipe of stage `rto`.

    Args:
        recipe: keys and values.
        processes: number of training processes.

    Raises:
        SepoError: the recipe is invalid.
    """
    policy = planned_policy(recipe, processes=processes)
    _, settings = resolve_rto(dict(recipe), host_keys=host_keys(), origins=getattr(recipe, "origins", None))
    arguments = _batches(recipe, policy)
    check_batches(settings.rto, arguments)
    sampled, scored = policy.rows * arguments.gradient_accumulation_steps, policy.rows
    if arguments.do_eval or arguments.eval_strategy != "no":
        sampled, scored = (max(rows, arguments.per_device_eval_batch_size) for rows in (sampled, scored))
    return PlannedRto(
        **vars(policy),
        settings=settings,
        reference=separate_reference(recipe, policy.kind) if settings.rto.needs_reference else None,
        accumulated=arguments.gradient_accumulation_steps,
        sampled=sampled,
        scored=scored,
    )


def _batches(recipe: Mapping[str, Any], policy: PlannedPolicy) -> SimpleNamespace:
    """Return the host's training arguments that batches follow from, with its defaults."""
    return SimpleNamespace(
        world_size=policy.engine.processes,
        per_device_train_batch_size=policy.rows,
        gradient_accumulation_steps=number_of(recipe, "gradient_accumulation_steps") or 1,
        do_train=True,
        do_eval=as_flag("do_eval", recipe.get("do_eval") or False),
        eval_strategy=str(recipe.get("eval_strategy") or "no"),
        per_device_eval_batch_size=number_of(recipe, "per_device_eval_batch_size") or 8,
    )


def rto_account(run: PlannedRto, *, on_gpu: bool) -> RtoAccount:
    """Estimate the memory of a run.

    Args:
        run: from ``planned_rto``.
        on_gpu: whether it runs on GPUs; memory besides tensors is added, for CUDA or for the process on a CPU.

    Returns:
        Bytes per process for each phase.

    Raises:
        SepoError: a model's configuration cannot be read, or the model cannot run on tensors without data.
    """
    try:
        return _account(run, on_gpu=on_gpu)
    except SepoError:
        raise
    except Exception as error:  # a model's own code on tensors without data
        reason = first_line(error)
        raise SepoError(f"the memory of '{run.policy.model}' cannot be estimated: {reason}") from error


def _account(run: PlannedRto, *, on_gpu: bool) -> RtoAccount:
    rto, notes = run.settings.rto, [f"prompts are counted with up to {run.cutoff:,} tokens (cutoff_len)."]
    policy = model_weights(run, run.policy, key="model_name_or_path", trained=run.trained)
    prompt = _longest_prompt(run, policy)
    frozen = _frozen(run, prompt)
    if frozen.judge is None:
        notes.append(f"judge {run.settings.rewards.judge} loads no model.")
    weights = {**training_items(run, policy, notes), **frozen.items}
    resident = {name: size for name, size in weights.items() if name not in (GRADIENTS, GATHERED_LAYERS)}
    share = 1.0 if rto.select is None or rto.select.rule == "mean" else rto.select.ratio
    batch = responses_of(run.rows, prompt=prompt, new_tokens=rto.max_new_tokens, share=share)
    phases = [
        _sampling(run, policy, prompt, weights, resident),
        _scoring(run, policy, frozen, prompt, weights, resident),
        _with_unpacked(
            "training",
            {**weights, "activations, head": float(_pass_bytes(run, policy, batch, backward=True))},
            policy.counted.largest_product,
        ),
    ]
    phases = [with_reserve(phase, on_gpu=on_gpu) for phase in phases]
    if run.on_cpu:
        loaded = loading(policy, quantized=run.policy.quantization_bit is not None)
        phases.insert(0, Phase(loaded.name, {**loaded.items, **frozen.items}))
    return RtoAccount(run, policy.counted.parameters, policy.counted.trainable, batch, tuple(phases), tuple(notes))


def _longest_prompt(run: PlannedRto, policy: ModelWeights) -> int:
    """Return the tokens of the longest prompt: a prompt that leaves no room for a response is not used."""
    positions = getattr(policy.config, "max_position_embeddings", None)
    return run.cutoff if positions is None else max(1, min(run.cutoff, positions - run.settings.rto.max_new_tokens))


def _frozen(run: PlannedRto, prompt: int) -> _Frozen:
    """Account for the models beside the policy; engines shard the reference alone."""
    settings, items = run.settings, {}
    reference, scoring, judge = None, [], None
    if run.reference is not None:
        reference = model_weights(run, run.reference, key="ref_model")
        items["reference"] = sharding(run.engine)(reference.counted.total, 3)
    if settings.oracle is not None:
        scoring.append(model_weights(run, settings.oracle.oracle, key="oracle_model"))
        items["oracle"] = scoring[0].counted.total
        if not settings.oracle.one_set_of_weights:
            scoring.append(model_weights(run, settings.oracle.base, key="oracle_base_model"))
            items["oracle's base"] = scoring[1].counted.total
    rewards = settings.rewards
    if not rewards.is_verifier:
        longest = prompt + settings.rto.max_new_tokens
        judge = judge_memory(
            run, rewards, scoring_row(min(rewards.batch_tokens, run.sampled * longest), cutoff=longest)
        )
        items |= {f"judge: {name}": size for name, size in judge.models.items()}
    return _Frozen(items, reference, tuple(scoring), judge)


def _sampling(
    run: PlannedRto, policy: ModelWeights, prompt: int, weights: dict[str, float], resident: dict[str, float]
) -> Phase:
    rto = run.settings.rto
    batch = SampledBatch(run.sampled, prompt, rto.max_new_tokens, nucleus=rto.top_p < 1)
    # PEFT generates with the model below the wrapper that enables autocast.
    autocast = None if run.kind == "lora" else run.autocast
    found = generation_bytes(policy.config, batch, policy.dtype, trained=run.trained, autocast=autocast)
    items = dict(resident)
    if run.engine.zero == 3 and run.engine.name != FSDP:  # TRL gathers all weights of DeepSpeed's
        items |= dict.fromkeys(_OF_POLICY, 0.0)
        items["gathered weights"] = policy.counted.total
    elif GATHERED_LAYERS in weights:
        items[GATHERED_LAYERS] = weights[GATHERED_LAYERS]
    items |= {"keys and values": float(found.cache), "activations, logits": float(found.activations)}
    return _with_unpacked("sampling", items, policy.counted.largest_product)


def _scoring(
    run: PlannedRto,
    policy: ModelWeights,
    frozen: _Frozen,
    prompt: int,
    weights: dict[str, float],
    resident: dict[str, float],
) -> Phase:
    """Account for the passes over the sampled responses without gradient, one after the other."""
    rto = run.settings.rto
    new = rto.max_new_tokens
    scored = responses_of(run.scored, prompt=prompt, new_tokens=new)
    passes, unpacked = [0], frozen.unpacked
    if rto.needs_policy_pass:
        passes.append(_pass_bytes(run, policy, scored, reads="entropies"))
    if rto.iterations > 1:  # TRL computes the log-probabilities before the first of several steps
        passes.append(_pass_bytes(run, policy, scored, reads="logits"))
    if rto.needs_policy_pass or rto.iterations > 1 or (rto.needs_reference and frozen.reference is None):
        unpacked = max(unpacked, policy.counted.largest_product)
    if rto.needs_reference:
        passes.append(_pass_bytes(run, policy, scored, reference=frozen.reference))
    rows = max(1, min(run.sampled, run.settings.score_batch_tokens // (prompt + new)))
    for model in frozen.scoring:
        alone = Pass(model.dtype, backward=False, head_chunk_tokens=rto.head_chunk_tokens)
        passes.append(responses_bytes(model.config, responses_of(rows, prompt=prompt, new_tokens=new), alone))
    if frozen.judge is not None:
        passes.append(frozen.judge.activations)
    items = {**resident, "activations, head": float(max(passes))}
    if GATHERED_LAYERS in weights:
        items[GATHERED_LAYERS] = weights[GATHERED_LAYERS]
    return _with_unpacked("scoring, judging", items, unpacked)


def _pass_bytes(
    run: PlannedRto,
    policy: ModelWeights,
    batch: Responses,
    *,
    reference: ModelWeights | None = None,
    backward: bool = False,
    reads: Reads = "logps",
) -> int:
    """Return the bytes of a pass of the policy, or of a reference that is a second model, over a device batch."""
    model = reference or policy
    rto = run.settings.rto
    how = Pass(
        model.dtype,
        autocast=run.autocast,
        trained=NOTHING_TRAINS if model is reference else run.trained,
        backward=backward,
        checkpointing=run.checkpointing,
        head_chunk_tokens=rto.head_chunk_tokens,
    )
    return responses_bytes(model.config, batch, how, temperature=rto.temperature, reads=reads)


def _with_unpacked(name: str, items: dict[str, float], product: int) -> Phase:
    return Phase(name, {**items, **({"unpacked matrix": float(product)} if product else {})})
