"""Checkpoints of several CPU processes can be read again."""

from __future__ import annotations

import functools
from typing import Any

import torch


@functools.cache
def know_numbered_cpus() -> None:
    """Let ``torch.load`` map to ``cpu:0``, ``cpu:1``, ...

    Of several processes on a CPU each trainer has such a device, and maps the optimizer's states to it when it
    resumes. Torch itself knows ``cpu`` only.
    """
    torch.serialization.register_package(90, _no_tag, _as_it_is)


def _no_tag(storage: object) -> None:
    """Storages are saved as torch saves them."""


def _as_it_is(storage: Any, location: str) -> Any:
    return storage if location.startswith("cpu:") else None
