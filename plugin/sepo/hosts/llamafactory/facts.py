"""What differs between the supported versions of LLaMA-Factory, each decided by looking at the installed host.

The rest of the adapter queries these functions and compares no versions.
"""

from __future__ import annotations

from types import ModuleType

SUPPORTED = "LLaMA-Factory 0.9.4 or 0.9.5"
"""The releases that are supported, for messages."""


def has_ray_worker(tuner: ModuleType) -> bool:
    """Return whether Ray starts a class of ``llamafactory.train.tuner``; 0.9.5 and later.

    Earlier versions pass a function to ``get_ray_trainer`` instead.
    """
    return hasattr(tuner, "Worker")
