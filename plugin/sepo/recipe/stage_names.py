"""Names of the stages, read without importing torch, so that a run of another stage costs and risks nothing."""

from __future__ import annotations

from sepo.errors import SepoError, nearest
from sepo.plugins import find, names

STAGES = {"sepo": "sepo", "selective_dpo": "selective_dpo", "minor_dpo": "minor_dpo", "treg": "dpo_reg"}
"""Built-in stages, with the objective of each if the recipe names no other."""

RTO = "rto"
"""Stage that trains on sampled responses, and has no objective of pairs."""

HOST_STAGES = ("pt", "sft", "rm", "ppo", "dpo", "kto")
"""LLaMA-Factory's own stages."""

TAKEN = (*STAGES, RTO, *HOST_STAGES)
"""Names that no package may register."""


def available_stages() -> tuple[str, ...]:
    """Return the built-in stages, then the registered ones."""
    return (*STAGES, *names("stage", built_in=TAKEN))


def is_sepo_stage(stage: str | None) -> bool:
    """Return whether a stage trains on pairs, and is built into this package or registered by another.

    Raises:
        SepoError: If several packages register the name.
    """
    return stage is not None and (find("stage", stage, built_in=TAKEN) is not None or stage in STAGES)


def check_stage(stage: str | None) -> None:
    """Raise if a stage is neither the host's, nor built in or registered.

    Raises:
        SepoError: If the stage is unknown; the message gives the nearest known name.
    """
    known = (*HOST_STAGES, *available_stages(), RTO)
    if stage is not None and stage not in known:
        raise SepoError(f"unknown stage '{stage}'.{nearest(stage, known)} Stages: {', '.join(known)}.")
