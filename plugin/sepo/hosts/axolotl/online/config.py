"""Stage `rto` in Axolotl's config: ``rl: rto`` becomes ``rl: grpo``, whose keys keep their meaning."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from sepo.errors import SepoError
from sepo.hosts.axolotl.block import SAME_IN_RTO, checked_block, host_values, plain
from sepo.hosts.axolotl.host_keys import MODEL_KEYS, check_host, policy_keys
from sepo.hosts.axolotl.hub import reference_revisions
from sepo.hosts.axolotl.stage import alias_of
from sepo.recipe.ignored_keys import ignored_notes
from sepo.recipe.keys import HOST_KEYS, RTO_KEYS
from sepo.recipe.rto import RtoMethod, RtoSettings, resolve_rto
from sepo.recipe.stage_names import RTO

logger = logging.getLogger(__name__)

TRAINER = "sepo.hosts.axolotl.online.trainer.RtoTrainer"

_GRPO = "grpo"

_ADAPTER = "adapter_name_or_path"
"""Name in the other host of ``lora_model_dir``, the adapter from which a run continues."""

_OF_DPO = "it belongs to rl: dpo; remove it"
_REFUSED = {
    **dict.fromkeys(
        ("dpo_use_liger_kernel", "dpo_padding_free", "precompute_ref_log_probs", "dpo_loss_type", "dpo_loss_weights",
         "dpo_use_weighting", "dpo_label_smoothing", "dpo_beta", "dpo_ld_alpha", "simpo_gamma"),
        _OF_DPO,
    ),
    "streaming": "TRL's sampler of prompts needs their number; remove it",
    "pretraining_dataset": "stage rto samples responses to prompts; remove it",
    "reward_model": "stage rto trains a policy; remove it, and name the judge in the sepo block",
    "use_ray": "sepo's stages do not support Ray in Axolotl; use torchrun or accelerate",
    "router_aux_loss_coef": "stage rto has no router loss; remove it",
    "batch_flattening": "stage rto computes log-probabilities itself, at the selected tokens; remove it",
    **dict.fromkeys(
        ("chunked_cross_entropy", "cut_cross_entropy", "liger_fused_linear_cross_entropy"),
        "it replaces the head's loss, and stage rto computes log-probabilities itself; remove it",
    ),
    **dict.fromkeys(("sample_packing", "eval_sample_packing"), "sampled responses are not packed; remove it"),
    **dict.fromkeys(("use_eaft", "use_dft"), "it replaces the loss of SFT; remove it"),
}  # fmt: skip

_IGNORED = {
    **dict.fromkeys(
        ("early_stopping_patience", "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
         "neftune_noise_alpha", "dataloader_drop_last", "loss_watchdog_threshold", "curriculum_sampling",
         "jagged_restart_steps", "lr_quadratic_warmup", "relora", "lisa_n_layers", "ddp_timeout", "ddp_bucket_cap_mb",
         "ddp_broadcast_buffers", "ddp_find_unused_parameters"),
        "Axolotl passes it to SFT trainers only",
    ),
    **dict.fromkeys(
        ("group_by_length", "pad_to_sequence_len", "multipack_real_batches", "train_on_inputs"),
        "responses are sampled",
    ),
    **dict.fromkeys(("eval_table_size", "do_bench_eval", "do_causal_lm_eval"), "evaluations return no predictions"),
    **dict.fromkeys(
        ("orpo_alpha", "cpo_alpha", "kto_desirable_weight", "kto_undesirable_weight"), "it belongs to another rl"
    ),
}  # fmt: skip
"""Why a key of Axolotl has no effect, as under its own ``rl: grpo``."""

_TRL = (
    "use_vllm", "vllm_mode", "vllm_server_host", "vllm_server_port", "vllm_server_timeout",
    "vllm_guided_decoding_regex", "vllm_enable_sleep_mode", "generation_batch_size", "log_completions",
    "num_completions_to_print", "top_k", "min_p", "repetition_penalty",
)  # fmt: skip
"""Keys of the block ``trl`` that have the meaning of ``rl: grpo``, besides those of ``SAME_IN_RTO``."""

_NOT_IN_TRL = {
    **dict.fromkeys(("reward_funcs", "reward_weights"), "the judge gives the rewards; set judge in the sepo block"),
    "rollout_func": "responses are sampled by TRL; remove it",
    "use_liger_loss": "it replaces the loss, which stage rto computes per token; remove it",
    **dict.fromkeys(
        ("use_data_producer", "async_prefetch"), "it selects another trainer of Axolotl, which has one reward per "
        "response; remove it",
    ),
    "sync_ref_model": "the reference of stage rto is fixed; remove it",
}  # fmt: skip


@dataclass(frozen=True)
class ResolvedRto:
    """Stage `rto` in a config.

    Args:
        given: the keys and values that it was resolved from, under the names that all hosts share.
        changes: keys and values to set in the config, for Axolotl's schema.
        origins: the keys of the config that set them.
        entries: the data sets of the raw config; the schema of ``rl: grpo`` drops names of columns.
    """

    given: Mapping[str, Any]
    changes: Mapping[str, Any]
    origins: Mapping[str, str] = field(default_factory=dict)
    entries: Sequence[Mapping[str, Any]] = ()

    @cached_property
    def settings(self) -> RtoSettings:
        """Settings of the run."""
        _, settings = resolve_rto(
            dict(self.given), host_keys=(*HOST_KEYS, *MODEL_KEYS, _ADAPTER, "stage"), origins=self.origins
        )
        return settings

    def as_json(self) -> str:
        """Return the JSON that ``from_json`` reads in the trainer."""
        return json.dumps(dict(self.given))

    @classmethod
    def from_json(cls, text: str) -> ResolvedRto:
        """Construct from the result of ``as_json``, without a config."""
        return cls(json.loads(text), {})


def resolve_rto_config(cfg: Mapping[str, Any]) -> ResolvedRto:
    """Resolve stage `rto` of a raw config.

    Args:
        cfg: the raw config, with the values of the command line; ``rl`` or ``sepo.stage`` is ``rto``.

    Raises:
        SepoError: If the config is invalid.
    """
    block = checked_block(cfg.get("sepo"))
    alias = _check_stage(cfg, block)
    check_host(cfg, _REFUSED, trainer=TRAINER)
    trl = plain(cfg.get("trl") or {})
    _check_trl(trl)
    if str(cfg.get("excess_length_strategy") or "drop").lower() == "truncate":
        raise SepoError(
            "excess_length_strategy is truncate, but a prompt without its end has no question to respond to; set "
            "excess_length_strategy: drop or raise."
        )
    for note in ignored_notes([name for name, value in cfg.items() if value], _IGNORED):
        logger.warning(note)
    values, aliases = host_values(cfg, block, SAME_IN_RTO, read=_read)
    given = {**block, "stage": RTO, **values, **policy_keys(cfg), _ADAPTER: cfg.get("lora_model_dir")}
    given = {name: value for name, value in given.items() if value is not None}
    given |= reference_revisions(given)
    origins = {**{name: f"sepo.{name}" for name in block}, **aliases, **({"stage": "rl"} if alias else {})}
    resolved = ResolvedRto(given, {}, origins, tuple(plain(cfg.get("datasets") or [])))
    method = resolved.settings.rto
    _check_groups(cfg, trl, method)
    changes = {
        "rl": _GRPO,
        "sepo": {**block, "stage": RTO},
        "trainer_cls": TRAINER,
        "trl": {**trl, **_grpo_keys(method)},
    }
    return replace(resolved, changes=changes)


def _check_stage(cfg: Mapping[str, Any], block: Mapping[str, Any]) -> bool:
    """Return whether ``rl`` names the stage.

    Raises:
        SepoError: If ``rl`` and the block name different stages, or ``rl`` is another value of Axolotl's.
    """
    rl, alias, named = cfg.get("rl"), alias_of(cfg), block.get("stage")
    if alias is not None:
        if named not in (None, alias):
            raise SepoError(f"rl is {alias} and sepo.stage is {named}; remove one of them.")
        return True
    if rl != _GRPO:
        raise SepoError(
            f"sepo.stage is {RTO} and rl is {'absent' if rl is None else rl}, expected rl: {RTO}, or rl: {_GRPO} with "
            f"trainer_cls: {TRAINER}."
        )
    if cfg.get("trainer_cls") is None:
        logger.warning(
            "rl is %s, which Axolotl also trains in an environment without sepo: it drops unknown blocks and trains "
            "plain GRPO. To make such a run fail, set rl: %s, or add trainer_cls: %s.",
            _GRPO, RTO, TRAINER,
        )  # fmt: skip
    return False


def _check_trl(trl: Mapping[str, Any]) -> None:
    same = {name.removeprefix("trl.") for names in SAME_IN_RTO.values() for name in names if name.startswith("trl.")}
    for name, value in trl.items():
        if name in same or name in _TRL or not value:
            continue
        reason = _NOT_IN_TRL.get(name, "stage rto does not read it; remove it")
        raise SepoError(f"trl.{name} is set, but {reason}.")


def _read(name: str, key: str, value: Any) -> Any:
    """Convert a value to the type of the block's key; the message has the name under which it was found."""
    if key == "rto_scale" and isinstance(value, bool):
        value = "group" if value else "none"  # as TRL reads it
    return replace(RTO_KEYS[key], name=name).read(value)


def _grpo_keys(method: RtoMethod) -> dict[str, Any]:
    """Return the keys of the block ``trl`` by which TRL samples, compares and reuses responses as the method does."""
    return {
        "num_generations": method.samples,
        "max_completion_length": method.max_new_tokens,
        "temperature": method.temperature,
        "top_p": method.top_p,
        "num_iterations": method.iterations,
        "epsilon": method.clip,
        "loss_type": method.loss_type,
        "scale_rewards": method.scale,
        "beta": 0.0,  # the trainer runs the reference itself
    }


def _check_groups(cfg: Mapping[str, Any], trl: Mapping[str, Any], method: RtoMethod) -> None:
    """Raise if a batch of sampled responses would contain a part of a group, or fewer groups than processes.

    TRL refuses the first once models are loaded, Axolotl's schema both in several lines.

    Args:
        cfg: the raw config.
        trl: its block ``trl``.
        method: the method.

    Raises:
        SepoError: with the sizes.
    """
    size = int(cfg.get("micro_batch_size") or 1)
    steps = cfg.get("gradient_accumulation_steps")
    if steps is None:
        steps = max(1, int(cfg.get("batch_size") or size) // size)
    responses = trl.get("generation_batch_size")
    where = "trl.generation_batch_size"
    if responses is None:
        responses = size * int(steps)
        where = f"micro_batch_size x gradient_accumulation_steps ({size} x {steps})"
    if int(responses) % method.samples:
        raise SepoError(
            f"{where} is {responses}, expected a multiple of rto_samples ({method.samples}): the responses to a prompt "
            "are compared with each other."
        )
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if int(responses) < method.samples * processes:
        raise SepoError(
            f"{where} is {responses}, expected at least rto_samples x processes ({method.samples} x {processes}), as "
            "in rl: grpo; raise gradient_accumulation_steps."
        )
