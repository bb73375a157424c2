"""A sepo stage in Axolotl's config: detection, checks against the host's keys, and the resolution that hosts share."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sepo.errors import SepoError, nearest
from sepo.hosts.axolotl.conversations import check_types
from sepo.hosts.axolotl.hub import reference_revisions
from sepo.hosts.axolotl.stage import alias_of, names_stage
from sepo.recipe.ignored_keys import ignored_notes
from sepo.recipe.keys import HOST_KEYS, KEYS, unknown_key
from sepo.recipe.resolve import resolve
from sepo.recipe.settings import RunSettings
from sepo.recipe.stage_names import available_stages
from sepo.recipe.stages import owner_of_key
from sepo.text.conversations import QUOTED

logger = logging.getLogger(__name__)

TRAINER = "sepo.hosts.axolotl.trainer.PreferenceTrainer"

_SAME = {
    "pref_beta": ("rl_beta", "dpo_beta", "trl.beta"),
    "simpo_gamma": ("simpo_gamma",),
    "dpo_label_smoothing": ("dpo_label_smoothing",),
    "ld_alpha": ("dpo_ld_alpha",),
    "moe_aux_loss_coef": ("router_aux_loss_coef", "overrides_of_model_config.router_aux_loss_coef"),
}
"""Axolotl's keys with the same meaning, by the key of the block ``sepo``."""

_MODEL_KEYS = ("model_name_or_path", "model_revision", "quantization_bit", "finetuning_type", "seed")

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


def block_keys() -> Iterator[tuple[str, str]]:
    """Yield the keys of the block ``sepo`` with their help."""
    yield "stage", "The stage: `sepo`, `selective_dpo`, `treg`, `minor_dpo`, or a registered one; also set by `rl`."
    for row in (*KEYS.values(), *HOST_KEYS.values()):
        same = "".join(f" Also set by Axolotl's `{name}`." for name in _SAME.get(row.name, ())[:1])
        yield row.name, row.help + same


BLOCK_KEYS = tuple(name for name, _ in block_keys())


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
    _, settings = resolve(dict(given), host_keys=(*HOST_KEYS, *_MODEL_KEYS, "stage"), origins=origins)
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
    block = _checked_block(cfg.get("sepo"))
    stage = _stage(rl, alias, block)
    _check_host(cfg)
    if alias is None and cfg.get("trainer_cls") is None:
        logger.warning(
            "rl is %s, which Axolotl also trains in an environment without sepo: it drops unknown blocks and trains "
            "plain DPO. To make such a run fail, set rl: %s, or add trainer_cls: %s.",
            rl, stage, TRAINER,
        )  # fmt: skip
    for note in ignored_notes([name for name, value in cfg.items() if value], _IGNORED):
        logger.warning(note)
    values, aliases = _host_values(cfg, block)
    if (cfg.get("overrides_of_model_config") or {}).get("output_router_logits") and "moe_aux_loss_coef" not in values:
        raise SepoError(
            "overrides_of_model_config sets output_router_logits, but nothing sets the weight of the router loss; set "
            "router_aux_loss_coef, or remove output_router_logits."
        )
    given = {**block, "stage": stage, **values, **_model(cfg)}
    given = {name: value for name, value in given.items() if value is not None}
    given |= reference_revisions(given)
    _weight(given.get("pref_ftx"))
    changes = {"rl": "dpo", "sepo": {**block, "stage": stage}, "trainer_cls": TRAINER}
    origins = {**{name: f"sepo.{name}" for name in block}, **aliases, **({} if alias is None else {"stage": "rl"})}
    resolved = Resolved(given, changes, origins)
    settings = resolved.settings
    _check_settings(cfg, settings)
    return resolved


def _checked_block(block: Any) -> dict[str, Any]:
    if block is None:
        return {}
    if not isinstance(block, Mapping):
        raise SepoError(f"sepo is {block!r}, expected a mapping with keys such as stage, select_ratio, oracle_model.")
    flat = {**{name: value for name, value in block.items() if name != "own"}, **(block.get("own") or {})}
    for name in flat:
        if name not in BLOCK_KEYS and owner_of_key(name) is None:
            raise SepoError(f"block sepo: {unknown_key(name, BLOCK_KEYS)}")
    # Plain containers: the values are written to the run's output_dir as JSON.
    return {name: plain(value) for name, value in flat.items() if value is not None}


def plain(value: Any) -> Any:
    """Return a value of a config with lists and dicts as containers, also in place of Axolotl's own mapping."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


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


def _check_host(cfg: Mapping[str, Any]) -> None:
    for name, reason in _REFUSED.items():
        if cfg.get(name):
            raise SepoError(f"{name} is set, but {reason}.")
    for name, value in cfg.items():
        if str(name).startswith("unsloth_") and value:
            raise SepoError(
                f"{name} is set, but Unsloth replaces the forward pass in which sepo's stages replace the head; "
                "remove it."
            )
    if (cfg.get("context_parallel_size") or cfg.get("sequence_parallel_degree") or 1) > 1:
        raise SepoError(
            "context_parallel_size is above 1, but Axolotl splits the rows in the model's forward pass, and a sepo "
            "stage needs whole responses; remove it (batch_tokens limits the memory of a batch)."
        )
    if cfg.get("trainer_cls") not in (None, TRAINER):
        raise SepoError(f"trainer_cls is {cfg['trainer_cls']}, but the stage sets the trainer; remove it.")


def _host_values(cfg: Mapping[str, Any], block: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values of Axolotl's keys with the same meaning, and their keys, under the names of the block's keys.

    Raises:
        SepoError: If keys with the same meaning have different values.
    """
    values: dict[str, Any] = {}
    names: dict[str, str] = {}
    for key, aliases in _SAME.items():
        found = {f"sepo.{key}": block[key]} if key in block else {}
        for name in aliases:
            value: Any = cfg
            for part in name.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            if value is not None:
                found[name] = value
        if len({str(_number(name, value)) for name, value in found.items()}) > 1:
            differing = " and ".join(f"{name} is {value}" for name, value in found.items())
            raise SepoError(f"{differing}, but they have the same meaning; set one of them.")
        if found:
            names[key], values[key] = next(iter(found.items()))
    return values, names


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


def _model(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of the policy under the names that all hosts share."""
    quantized = 4 if cfg.get("load_in_4bit") else 8 if cfg.get("load_in_8bit") else None
    return {
        "model_name_or_path": cfg.get("base_model"),
        "model_revision": cfg.get("revision_of_model"),
        "quantization_bit": quantized,
        "finetuning_type": "lora" if cfg.get("adapter") else "full",
    }


def _check_settings(cfg: Mapping[str, Any], settings: RunSettings) -> None:
    if settings.method.scorer == "file" and str(cfg.get("excess_length_strategy") or "drop").lower() == "truncate":
        raise SepoError(
            "excess_length_strategy is truncate and token_scorer is file: Axolotl truncates the text and tokenizes it "
            "again, so the rows' scores would belong to other tokens; set excess_length_strategy: drop or raise."
        )
    if settings.prompts_for_rewards:
        check_types(cfg.get("datasets") or [], QUOTED)
