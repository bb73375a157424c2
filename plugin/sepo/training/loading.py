"""Loading of checkpoints from runs with several CPU processes."""

from __future__ import annotations

import functools
from typing import Any

import torch


@functools.cache
def register_numbered_cpus() -> None:
    """Register ``cpu:0``, ``cpu:1``, ... as map locations for ``torch.load``.

    With several processes on a CPU each trainer has such a device, and maps the optimizer states to it when it resumes.
    Torch itself supports ``cpu`` only.
    """
    torch.serialization.register_package(90, _no_tag, _as_it_is)


def _no_tag(storage: object) -> None:
    """Return None: storages are saved as usual."""


def _as_it_is(storage: Any, location: str) -> Any:
    return storage if location.startswith("cpu:") else None
