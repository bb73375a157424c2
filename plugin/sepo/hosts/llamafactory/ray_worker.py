"""The class that Ray starts in each worker process.

Ray ships a class by the name of its module. The host's own class would bring only the host into the worker; this one
brings our stages along.
"""

from __future__ import annotations

import os
from typing import Any


class Worker:
    """Registers our stages in the worker's process, then is the host's worker."""

    def __init__(self) -> None:
        from sepo.hosts.llamafactory.launcher import load_host

        load_host("train")
        from llamafactory.train import tuner

        from sepo.hosts.llamafactory.registration import RAY_WORKER, register

        os.environ[RAY_WORKER] = "1"
        register(tuner)
        self._worker = tuner.sepo_host_worker()

    def _training_function(self, config: dict[str, Any]) -> None:
        self._worker._training_function(config)
