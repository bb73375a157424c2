"""The block ``sepo`` of a config: its keys, and the keys of Axolotl that have the same meaning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sepo.errors import SepoError
from sepo.recipe.keys import HOST_KEYS, KEYS, REWARD_KEYS, RTO_KEYS, unknown_key
from sepo.recipe.stages import owner_of_key

SAME = {
    "pref_beta": ("rl_beta", "dpo_beta", "trl.beta"),
    "simpo_gamma": ("simpo_gamma",),
    "dpo_label_smoothing": ("dpo_label_smoothing",),
    "ld_alpha": ("dpo_ld_alpha",),
    "moe_aux_loss_coef": ("router_aux_loss_coef", "overrides_of_model_config.router_aux_loss_coef"),
}
"""Axolotl's keys with the same meaning, by the key of the block ``sepo``."""

SAME_IN_RTO = {
    "rto_samples": ("trl.num_generations",),
    "rto_max_new_tokens": ("trl.max_completion_length",),
    "rto_temperature": ("trl.temperature",),
    "rto_top_p": ("trl.top_p",),
    "rto_clip": ("trl.epsilon",),
    "rto_iterations": ("trl.num_iterations",),
    "rto_loss": ("trl.loss_type",),
    "rto_scale": ("trl.scale_rewards",),
    "rto_kl_beta": ("trl.beta", "rl_beta"),
}
"""The same for stage `rto`, whose keys in the block ``trl`` are those of ``rl: grpo``."""


def block_keys() -> Iterator[tuple[str, str]]:
    """Yield the keys of the block ``sepo`` with their help."""
    yield (
        "stage",
        ("The stage: `sepo`, `selective_dpo`, `treg`, `minor_dpo`, `rto`, or a registered one; also set by `rl`."),
    )
    same_keys = {**SAME, **SAME_IN_RTO}
    for row in (*KEYS.values(), *HOST_KEYS.values(), *RTO_KEYS.values(), *REWARD_KEYS.values()):
        same = "".join(f" Also set by Axolotl's `{name}`." for name in same_keys.get(row.name, ())[:1])
        yield row.name, row.help + same


BLOCK_KEYS = tuple(name for name, _ in block_keys())


def checked_block(block: Any) -> dict[str, Any]:
    """Return the keys and values of the block ``sepo`` that are set, in plain containers.

    Args:
        block: the value of ``sepo``, or None.

    Raises:
        SepoError: If it is no mapping, or has an unknown key.
    """
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


def host_values(
    cfg: Mapping[str, Any],
    block: Mapping[str, Any],
    same: Mapping[str, tuple[str, ...]],
    *,
    read: Callable[[str, str, Any], Any],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values of Axolotl's keys with the same meaning, and their keys, under the names of the block's keys.

    Args:
        cfg: the raw config.
        block: the block ``sepo``.
        same: Axolotl's keys, dotted within their blocks, by the key of the block ``sepo``.
        read: converts a value, given the name under which it was found and the key of the block.

    Raises:
        SepoError: If keys with the same meaning have different values.
    """
    values: dict[str, Any] = {}
    names: dict[str, str] = {}
    for key, aliases in same.items():
        found = {f"sepo.{key}": block[key]} if key in block else {}
        for name in aliases:
            value: Any = cfg
            for part in name.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            if value is not None:
                found[name] = value
        converted = {name: read(name, key, value) for name, value in found.items()}
        if len(set(map(str, converted.values()))) > 1:
            differing = " and ".join(f"{name} is {value}" for name, value in found.items())
            raise SepoError(f"{differing}, but they have the same meaning; set one of them.")
        if found:
            names[key], values[key] = next(iter(converted.items()))
    return values, names
