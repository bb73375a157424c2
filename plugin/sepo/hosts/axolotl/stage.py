"""Detection of a sepo stage in a raw config, without importing what such a stage needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def names_stage(cfg: Mapping[str, Any]) -> bool:
    """Return whether a raw config has a block ``sepo``, or a sepo stage in ``rl``."""
    return cfg.get("sepo") is not None or alias_of(cfg) is not None


def names_rto(cfg: Mapping[str, Any]) -> bool:
    """Return whether a raw config names the stage that trains on sampled responses, in ``rl`` or in the block."""
    from sepo.recipe.stage_names import RTO

    block = cfg.get("sepo")
    return RTO in (cfg.get("rl"), block.get("stage") if isinstance(block, Mapping) else None)


def alias_of(cfg: Mapping[str, Any]) -> str | None:
    """Return the value of ``rl`` if it is a stage of this package or a registered one, else None.

    Axolotl's own values are never such a stage; a value that neither has may be that of another plugin.
    """
    from axolotl.utils.schemas.enums import RLType

    rl = cfg.get("rl")
    if not isinstance(rl, str) or rl in {item.value for item in RLType}:
        return None
    from sepo.recipe.stage_names import RTO, is_sepo_stage

    return str(rl) if rl == RTO or is_sepo_stage(rl) else None
