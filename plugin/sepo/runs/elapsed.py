"""Seconds of training by step, from the log of a run or of its host."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sepo.runs.folder import HOST_LOG_FILE, is_number
from sepo.runs.log_reader import read_log

_ELAPSED = re.compile(r"(?:(\d{1,6}) days?, )?(\d{1,2}):(\d\d):(\d\d)")


def training_seconds(folder: Path) -> dict[int, float]:
    """Return the seconds of training at each logged step, evaluations during training included.

    A run of a sepo stage has them in its own log, a run of a stage of the host in the host's, in whole seconds. The
    time between an interruption and its resumption is not counted.

    Args:
        folder: the run's ``output_dir``.

    Returns:
        Seconds by step; empty if no log can be read.
    """
    try:
        return read_log(folder).seconds or _hosts_seconds(folder)
    except OSError:
        return {}


def _hosts_seconds(folder: Path) -> dict[int, float]:
    file = folder / HOST_LOG_FILE
    if not file.is_file():
        return {}
    found: dict[int, float] = {}
    earlier, last = 0.0, 0.0
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        entry = _entry(line)
        if entry is None:
            continue
        step, seconds = entry
        if step < max(found, default=0) or seconds < last:  # a resumed run counts from zero
            found = {done: time for done, time in found.items() if done < step}
            earlier = max(found.values(), default=0.0)
        last = seconds
        found[step] = earlier + seconds
    return found


def _entry(line: str) -> tuple[int, float] | None:
    """Return step and elapsed seconds of a line of the host's log, or None."""
    try:
        values: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not is_number(step := values.get("current_steps")):
        return None
    elapsed = _ELAPSED.fullmatch(str(values.get("elapsed_time")))
    if elapsed is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in elapsed.groups())
    return int(step), float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
