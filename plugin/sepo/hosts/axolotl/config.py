"""A sepo stage in Axolotl's config: detection, checks against the host's keys, and the resolution that hosts share."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sepo.credit.in_run import check_credit_data
from sepo.errors import SepoError, nearest
from sepo.hosts.axolotl.block import SAME, checked_block, host_values
from sepo.hosts.axolotl.conversations import check_types
from sepo.hosts.axolotl.host_keys import MODEL_KEYS, check_host, policy_keys
from sepo.hosts.axolotl.hub import reference_revisions
from sepo.hosts.axolotl.stage import alias_of, names_stage
from sepo.recipe.ignored_keys import ignored_notes
from sepo.recipe.keys import HOST_KEYS
from sepo.recipe.resolve import resolve
from sepo.recipe.settings import RunSettings
from sepo.recipe.stage_names import available_stages
from sepo.text.conversations import QUOTED

logger = logging.getLogger(__name__)

TRAINER = "sepo.hosts.axolotl.trainer.PreferenceTrainer"

_REFUSED = {
    "dpo_use_liger_kernel": "it replaces the loss and the forward pass, which the stage implements; remove it",
    "dpo_padding_free": "the stage already runs its batches without padding; remove it",
    "precompute_ref_log_probs": "it stores sums over whole responses, and the stage needs one value per token; set "
    "ref_precompute: true in the sepo block",
    "dpo_loss_type": "the key objective sets the loss; set objective: in the sepo block, or remove the block and set "
    "rl: dpo",
    "dpo_loss_weights": "the key objective sets the loss; remove it",
    "dpo_use_weighting": "it enables WPO's weight; set objective: wpo in the sepo block",
    "streaming": "scores are joined to the data by row number, and a stream has no row numbers; remove it",
    "pretraining_dataset": "a sepo stage trains on pairs; remove it",
    "lora_model_dir": "Axolotl does not load it in DPO runs; merge it first (axolotl merge-lora)",
    "reward_model": "a sepo stage trains a policy; remove it",
    "use_ray": "sepo's stages do not support Ray in Axolotl; use torchrun or accelerate",
    "chunked_cross_entropy": "it replaces the head's loss, which the stage replaces as well; remove it",
    "cut_cross_entropy": "it replaces the head's loss, which the stage replaces as well; remove it",
    "liger_fused_linear_cross_entropy": "it replaces the head's loss, which the stage replaces as well; remove it",
    "use_eaft": "it replaces the loss of SFT, and the key objective sets the loss; remove it",
    "use_dft": "it replaces the loss of SFT, and the key objective sets the loss; remove it",
    **dict.fromkeys(
        ("sample_packing", "eval_sample_packing"),
        "pairs are not packed, and their padding is not computed in any case; remove it",
    ),
}

_IGNORED = {
    **dict.fromkeys(
        (
            "early_stopping_patience", "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
            "neftune_noise_alpha", "auto_find_batch_size", "dataloader_drop_last", "loss_watchdog_threshold",
            "curriculum_sampling", "jagged_restart_steps", "lr_quadratic_warmup", "relora", "lisa_n_layers",
            "ddp_timeout", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_find_unused_parameters",
        ),
        "Axolotl passes it to SFT trainers only",
    ),
    **dict.fromkeys(
        ("group_by_length", "pad_to_sequence_len", "batch_flattening", "multipack_real_batches"),
        "the padding of pairs is not computed in any case",
    ),
    **dict.fromkeys(
        ("eval_table_size", "do_bench_eval", "do_causal_lm_eval"), "evaluations of pairs return no predictions"
    ),
    "train_on_inputs": "preference losses are over responses",
    **dict.fromkeys(
        ("orpo_alpha", "cpo_alpha", "kto_desirable_weight", "kto_undesirable_weight"), "it belongs to another rl"
    ),
}  # fmt: skip
"""Why a key of Axolotl has no effect, as under its own ``rl: dpo``."""


@dataclass(frozen=True)
class Resolved:
    """A sepo stage in a config.

    Args:
        given: the keys and values that it was resolved from, under the names that all hosts share.
        changes: keys and values to set in the config, for Axolotl's schema.
        origins: the keys of the config that set them.
    """

    given: Mapping[str, Any]
    changes: Mapping[str, Any]
    origins: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def settings(self) -> RunSettings:
        """Settings of the run."""
        return settings_from(self.given, self.origins)

    @property
    def chosen_nll_weight(self) -> float:
        """Weight of the negative log-likelihood over chosen tokens, ``pref_ftx``."""
        return _weight(self.given.get("pref_ftx"))

    def as_json(self) -> str:
        """Return the JSON that ``from_json`` reads in the trainer."""
        return json.dumps(dict(self.given))

    @classmethod
    def from_json(cls, text: str) -> Resolved:
        """Construct from the result of ``as_json``, without a config."""
        return cls(json.loads(text), {})


def settings_from(given: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> RunSettings:
    """Resolve a stage.

    Args:
        given: the keys and values under the names that all hosts share.
        origins: the keys of the config that set them, for the first screen.

    Raises:
        SepoError: See ``sepo.recipe.resolve.resolve``.
    """
    _, settings = resolve(dict(given), host_keys=(*HOST_KEYS, *MODEL_KEYS, "stage"), origins=origins)
    return settings


def resolve_config(cfg: Mapping[str, Any]) -> Resolved | None:
    """Detect a sepo stage in a raw config, and resolve it.

    Args:
        cfg: the raw config, with the values of the command line.

    Returns:
        The resolved stage, or None if ``rl`` names no sepo stage and there is no block ``sepo``.

    Raises:
        SepoError: If the config is invalid.
    """
    if not names_stage(cfg):
        return None
    rl, alias = cfg.get("rl"), alias_of(cfg)
    block = checked_block(cfg.get("sepo"))
    stage = _stage(rl, alias, block)
    check_host(cfg, _REFUSED, trainer=TRAINER)
    if alias is None and cfg.get("trainer_cls") is None:
        logger.warning(
            "rl is %s, which Axolotl also trains in an environment without sepo: it drops unknown blocks and trains "
            "plain DPO. To make such a run fail, set rl: %s, or add trainer_cls: %s.",
            rl, stage, TRAINER,
        )  # fmt: skip
    for note in ignored_notes([name for name, value in cfg.items() if value], _IGNORED):
        logger.warning(note)
    values, aliases = host_values(cfg, block, SAME, read=lambda name, _, value: _number(name, value))
    if (cfg.get("overrides_of_model_config") or {}).get("output_router_logits") and "moe_aux_loss_coef" not in values:
        raise SepoError(
            "overrides_of_model_config sets output_router_logits, but nothing sets the weight of the router loss; set "
            "router_aux_loss_coef, or remove output_router_logits."
        )
    given = {**block, "stage": stage, **values, **policy_keys(cfg)}
    given = {name: value for name, value in given.items() if value is not None}
    given |= reference_revisions(given)
    _weight(given.get("pref_ftx"))
    changes = {"rl": "dpo", "sepo": {**block, "stage": stage}, "trainer_cls": TRAINER}
    origins = {**{name: f"sepo.{name}" for name in block}, **aliases, **({} if alias is None else {"stage": "rl"})}
    resolved = Resolved(given, changes, origins)
    settings = resolved.settings
    _check_settings(cfg, settings)
    check_credit_data(settings.credit_data)
    return resolved


def _stage(rl: Any, alias: str | None, block: Mapping[str, Any]) -> str:
    named = block.get("stage")
    stages = ", ".join(available_stages())
    if alias is not None:
        if named not in (None, alias):
            raise SepoError(f"rl is {alias} and sepo.stage is {named}; remove one of them.")
        return alias
    if rl != "dpo":
        found = "absent" if rl is None else str(rl)
        raise SepoError(
            f"there is a block sepo and rl is {found}, expected one of {stages}, or dpo with a stage in the block."
            f"{nearest(found, (*available_stages(), 'dpo'))}"
        )
    if named is None:
        raise SepoError(
            f"there is a block sepo without a stage and rl is dpo; set rl or sepo.stage to one of {stages}."
        )
    return str(named)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise SepoError(f"{name} is {value!r}, expected a number.") from None


def _weight(value: Any) -> float:
    number = 0.0 if value is None else _number("sepo.pref_ftx", value)
    if not 0 <= number < float("inf"):
        raise SepoError(f"sepo.pref_ftx is {value}, expected a number of at least 0.")
    return number


def _check_settings(cfg: Mapping[str, Any], settings: RunSettings) -> None:
    if settings.method.scorer == "file" and str(cfg.get("excess_length_strategy") or "drop").lower() == "truncate":
        raise SepoError(
            "excess_length_strategy is truncate and token_scorer is file: Axolotl truncates the text and tokenizes it "
            "again, so the rows' scores would belong to other tokens; set excess_length_strategy: drop or raise."
        )
    if settings.prompts_for_rewards:
        check_types(cfg.get("datasets") or [], QUOTED)
