"""Peak memory of a step above the memory before it: in this process on a GPU, in a subprocess on a CPU."""

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
"""Number of the longest batches over whose steps a peak is taken."""

# By default glibc keeps freed blocks and splits them, which hides or adds up to a fifth of a step's memory; these
# settings make it return freed blocks to the system.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"}


def cuda_peak(step: Callable[[int], object], settle: Callable[[], None], *, batches: list[int]) -> int:
    """Return the peak of allocated GPU memory over some steps, in bytes, minus the memory allocated before them.

    Args:
        step: function that runs one step on the batch of the given index.
        settle: function that drops the gradients after a step.
        batches: indices of the batches.
    """
    torch.cuda.synchronize()
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for batch in _with_first_again(batches):
        step(batch)
        torch.cuda.synchronize()
        settle()
    return torch.cuda.max_memory_allocated() - before


def _with_first_again(batches: list[int]) -> list[int]:
    """Return the batches and the first one again: the first step keeps nothing for its backward pass yet."""
    return [*batches, *batches[:1]]


def can_measure_processes() -> bool:
    """Return whether this system reports the resident memory of a process (Linux)."""
    return _STATUS.is_file()


def resident(field: str) -> int:
    """Return a field of /proc/self/status in bytes: ``VmRSS`` (current) or ``VmHWM`` (the peak so far)."""
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {field}")


def resident_peak(step: Callable[[int], object], settle: Callable[[], None], *, batches: list[int], model: Any) -> int:
    """Return the peak of this process's resident memory over some steps, in bytes, minus that before them.

    Args:
        step: function that runs one step on the batch of the given index.
        settle: function that drops the gradients after a step.
        batches: indices of the batches.
        model: model whose weights are made resident first, since pages of a memory-mapped file are read on first use.
    """
    for parameter in model.parameters():
        parameter.detach().flatten()[::1024].sum()  # touches every page: a page has at least 1024 weights
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory freed after loading would hide the memory of a step
    before = resident("VmRSS")
    cleared = False
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")  # resets VmHWM to the current VmRSS
        cleared = True
    for batch in _with_first_again(batches):
        step(batch)
        settle()
    highest = resident("VmHWM") if cleared else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return max(0, highest - before)


def child_peak(task: dict[str, Any], *, folder: Path) -> tuple[int | None, str]:
    """Measure one contender in a subprocess, since the resident memory of a process rarely decreases.

    Args:
        task: the task of ``sepo.hosts.llamafactory.bench.child``.
        folder: a temporary directory.

    Returns:
        The peak in bytes and an empty text, or None and the reason.
    """
    result_file = folder / "result.json"
    result_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "sepo.hosts.llamafactory.bench.child", str(result_file)]
    environment = {**os.environ, **GIVE_BACK, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    given = json.dumps(task)  # by a pipe, not a file: the recipe may hold the token of a hub
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 0 and result_file.is_file():
        return int(json.loads(result_file.read_text(encoding="utf-8"))["peak_memory_bytes"]), ""
    lines = done.stderr.strip().splitlines() or ["no message"]
    return None, f"its process ended with status {done.returncode} ({lines[-1][:200]})"
