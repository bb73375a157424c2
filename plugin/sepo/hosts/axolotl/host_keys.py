"""Keys of Axolotl's config that every sepo stage reads or refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sepo.errors import SepoError

MODEL_KEYS = ("model_name_or_path", "model_revision", "quantization_bit", "finetuning_type", "seed")
"""Keys of ``policy_keys``, under which a stage is resolved, and the seed."""


def check_host(cfg: Mapping[str, Any], refused: Mapping[str, str], *, trainer: str) -> None:
    """Raise if a key of Axolotl is set that a stage does not support.

    Args:
        cfg: the raw config.
        refused: keys with the reason and what to do.
        trainer: the stage's trainer, the only value of ``trainer_cls``.

    Raises:
        SepoError: naming the key.
    """
    for name, reason in refused.items():
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
    if cfg.get("trainer_cls") not in (None, trainer):
        raise SepoError(f"trainer_cls is {cfg['trainer_cls']}, but the stage sets the trainer; remove it.")


def policy_keys(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of the policy under the names that all hosts share."""
    quantized = 4 if cfg.get("load_in_4bit") else 8 if cfg.get("load_in_8bit") else None
    return {
        "model_name_or_path": cfg.get("base_model"),
        "model_revision": cfg.get("revision_of_model"),
        "quantization_bit": quantized,
        "finetuning_type": "lora" if cfg.get("adapter") else "full",
    }
