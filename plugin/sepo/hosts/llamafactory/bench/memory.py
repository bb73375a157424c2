"""Peak memory of a step above what was there before it: of a GPU in this process, of a CPU in one of its own."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
STEPS_MEASURED = 2
"""Steps over which a peak is taken, on as many of the longest batches."""

# glibc keeps freed blocks and cuts them up, which hides a fifth of a step or adds as much; so it gives them back.
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"}


def cuda_peak(step: Callable[[int], object], settle: Callable[[], None], *, batches: list[int]) -> int:
    """Peak of allocated GPU memory in some steps, in bytes, minus what was allocated before.

    Args:
        step: runs one step on the batch of that number.
        settle: drops the gradients after a step.
        batches: numbers of the batches.
    """
    torch.cuda.synchronize()
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for batch in batches:
        step(batch)
        torch.cuda.synchronize()
        settle()
    return torch.cuda.max_memory_allocated() - before


def can_measure_processes() -> bool:
    """Whether this system tells a process its resident memory (Linux)."""
    return _STATUS.is_file()


def resident(field: str) -> int:
    """A field of /proc/self/status in bytes: ``VmRSS`` (now) or ``VmHWM`` (the highest so far)."""
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {field}")


def resident_peak(step: Callable[[int], object], settle: Callable[[], None], *, batches: list[int], model: Any) -> int:
    """Peak of this process's resident memory in some steps, in bytes, minus what was resident before.

    Args:
        step: runs one step on the batch of that number.
        settle: drops the gradients after a step.
        batches: numbers of the batches.
        model: its weights are made resident first: a file that is mapped into memory is read when it is used.
    """
    for parameter in model.parameters():
        parameter.detach().flatten()[::1024].sum()  # no page is longer than that
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what loading left free would hide what a step needs
    before = resident("VmRSS")
    cleared = False
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")  # sets the high-water mark to what is resident now
        cleared = True
    for batch in batches:
        step(batch)
        settle()
    highest = resident("VmHWM") if cleared else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return max(0, highest - before)


def child_peak(task: dict[str, Any], *, folder: Path) -> tuple[int | None, str]:
    """Measure one contender in a process of its own, since resident memory seldom falls.

    Args:
        task: for ``sepo.hosts.llamafactory.bench.child``.
        folder: a temporary one.

    Returns:
        Bytes, or None and why.
    """
    task_file, result_file = folder / "task.json", folder / "result.json"
    result_file.unlink(missing_ok=True)
    task_file.write_text(json.dumps(task), encoding="utf-8")
    command = [sys.executable, "-m", "sepo.hosts.llamafactory.bench.child", str(task_file), str(result_file)]
    environment = {**os.environ, **_GIVE_BACK, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 0 and result_file.is_file():
        return int(json.loads(result_file.read_text(encoding="utf-8"))["peak_memory_bytes"]), ""
    lines = done.stderr.strip().splitlines() or ["no message"]
    return None, f"its process ended with status {done.returncode} ({lines[-1][:200]})"
