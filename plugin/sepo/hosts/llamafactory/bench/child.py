"""Subprocess that measures the memory of one contender: ``python -m ... result.json < task``; see ``memory``."""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any


def main(task: dict[str, Any], result_file: Path) -> None:
    """Run the task and write its result.

    Args:
        task: ``recipe`` (from ``measured_recipe``), ``contender``, ``rounds`` and ``seed``.
        result_file: JSON file to write, with ``peak_memory_bytes``.
    """
    name = task["contender"]
    import torch

    from sepo.hosts.llamafactory.bench.contenders import plan_contenders
    from sepo.hosts.llamafactory.bench.memory import STEPS_MEASURED, resident_peak
    from sepo.hosts.llamafactory.bench.session import open_session
    from sepo.hosts.llamafactory.recipe import host_keys

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    contenders = plan_contenders(task["recipe"], host_keys=host_keys(), names=[name])
    session = open_session(contenders, rounds=task["rounds"], seed=task["seed"])
    peak = resident_peak(
        functools.partial(session.step, name),
        functools.partial(session.settle, name),
        batches=session.longest(STEPS_MEASURED),
        model=session.model,
    )
    result_file.write_text(json.dumps({"peak_memory_bytes": peak}), encoding="utf-8")


if __name__ == "__main__":
    main(json.load(sys.stdin), Path(sys.argv[1]))
