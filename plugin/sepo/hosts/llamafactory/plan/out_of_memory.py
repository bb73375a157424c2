"""Memory of a training run: a warning before one that cannot fit, and advice after one that ran out of memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from sepo.console import size
from sepo.errors import SepoError, first_line
from sepo.hosts.llamafactory.plan.account import account_for
from sepo.hosts.llamafactory.plan.changes import changes
from sepo.hosts.llamafactory.plan.recipe import PlannedRun, planned_run
from sepo.hosts.llamafactory.plan.report import advice, verdict
from sepo.hosts.llamafactory.plan.run import device_memory, savings
from sepo.recipe.given import given_keys
from sepo.scoring.hub_files import MODEL
from sepo.scoring.model_files import model_files
from sepo.scoring.models import plain_loading

logger = logging.getLogger(__name__)

_SMALL = 0.02
"""Runs whose policy's weights are below this share of a device's memory are not planned before they start."""


def train_with_plan(train: Callable[[dict[str, Any]], None], config: dict[str, Any]) -> None:
    """Train; warn before a run that cannot fit, and name the largest savings if it runs out of memory.

    Args:
        train: the host's training function.
        config: its argument; ``args`` is a recipe of one of sepo's stages.

    Raises:
        SepoError: in place of ``torch.OutOfMemoryError``.
    """
    import torch

    recipe = {name: value for name, value in given_keys(config["args"]).items() if value is not None}
    if os.environ.get("LOCAL_RANK", "0") == "0":
        warn_if_too_large(recipe)
    try:
        return train(config)
    except torch.OutOfMemoryError as error:
        helpful = what_would_help(recipe)
        raise SepoError(
            f"out of memory: {first_line(error)}"
            + (f" Largest savings: {helpful}. `sepo plan` shows the account." if helpful else "")
        ) from error


def warn_if_too_large(recipe: Mapping[str, Any]) -> str | None:
    """Log a warning if a run cannot fit.

    Args:
        recipe: a checked recipe of one of sepo's stages.

    Returns:
        The warning, or None.
    """
    try:
        run = planned_run(recipe, processes=int(os.environ.get("WORLD_SIZE", "1")))
        limit, where = device_memory(on_cpu=run.on_cpu)
        if limit is None or _weights_on_disk(run) < _SMALL * limit:
            return None
        on_gpu = not run.on_cpu
        with plain_loading():
            account = account_for(run, on_gpu=on_gpu)
            if account.peak.total <= limit:
                return None
            _, fitting = savings(recipe, account, limit=limit, on_gpu=on_gpu)
    except Exception as error:  # a failed estimate must not stop the run
        logger.debug("no memory plan: %s", error)
        return None
    message = f"{verdict(account.peak, limit=limit, where=where)}, if a batch fills cutoff_len. {advice(fitting)}"
    logger.warning("memory plan: %s (sepo plan shows the account)", message)
    return message


def _weights_on_disk(run: PlannedRun) -> float:
    """Return the bytes of the policy's weight files, which the checks of the recipe have fetched."""
    found = model_files(
        run.policy.model, key="model_name_or_path", marker=MODEL, access=run.access, revision=run.policy.revision
    )
    names = found.files or [file.name for file in found.folder.iterdir()]
    files = (found.folder / name for name in names if name.endswith((".safetensors", ".bin")))
    return sum(file.stat().st_size for file in files)


def what_would_help(recipe: Mapping[str, Any]) -> str:
    """Return the three changes that save most, for a run that ran out of memory; empty if no plan can be made."""
    try:
        run = planned_run(recipe, processes=int(os.environ.get("WORLD_SIZE", "1")))
        with plain_loading():  # an active engine would partition the models without data
            account = account_for(run, on_gpu=not run.on_cpu)
            found = changes(recipe, account, on_gpu=not run.on_cpu)
    except Exception as error:
        logger.debug("no memory plan: %s", error)
        return ""
    best = sorted(found, key=lambda change: -change.saving)[:3]
    return "; ".join(f"{change.text} (saves about {size(change.saving)})" for change in best)
