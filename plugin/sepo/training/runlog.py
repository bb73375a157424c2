"""A run's own log: every logged number of training and evaluation, a line each, as it happens.

The trainer's own state is written with checkpoints only, and the host's log has a few of the numbers. This file is what
`sepo status` reads while a run goes on. A run that resumes goes on in the same file.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from transformers import TrainerCallback

SETTINGS_FILE = "sepo_settings.json"
"""In the run's ``output_dir``: what it was asked for, and where its scores are."""
LOG_FILE = "sepo_log.jsonl"
"""In the run's ``output_dir``; one JSON object a line."""


class RunLog(TrainerCallback):
    """Appends to the log, in the first process only."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note where the run begins, or goes on."""
        self._write(args, state, event="begin", step=state.global_step, total_steps=state.max_steps, **_process())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Note the numbers."""
        numbers = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        if state.max_steps > 0 and numbers:
            self._write(args, state, event="log", step=state.global_step, **numbers)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note that the last step is done."""
        self._write(args, state, event="end", step=state.global_step)

    def _write(self, args: Any, state: Any, **values: Any) -> None:
        if state.is_world_process_zero:
            _append(Path(args.output_dir), values)


def note_preparation(folder: Path, **values: Any) -> None:
    """Note that a run scores its rows or loads its models, before a trainer exists.

    Args:
        folder: the run's ``output_dir``.
        **values: what the run is, as plain JSON values.
    """
    _append(folder, {"event": "prepare", "step": 0, **_process(), **values})


def _process() -> dict[str, Any]:
    return {"process": os.getpid(), "machine": socket.gethostname()}


def _append(folder: Path, values: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps({**values, "time": round(time.time(), 3)}) + "\n"
    with (folder / LOG_FILE).open("a+b") as log:
        # A killed run may have left half a line.
        if log.tell() and not _ends_a_line(log):
            line = "\n" + line
        log.write(line.encode())


def _ends_a_line(log: BinaryIO) -> bool:
    log.seek(-1, os.SEEK_END)
    return log.read(1) == b"\n"


@dataclass
class LoggedRun:
    """What a log says.

    Attributes:
        entries: logged numbers, with ``step`` and ``time``, in their order; those that a resumed run did again are
            its later ones.
        begun: the last line with which the run began or went on, or None.
        prepared: the last line with which it began to score or load, or None.
        ended: whether training ended after it.
        unread: lines that could not be read (the last one of a killed run, say).
    """

    entries: list[dict[str, Any]] = field(default_factory=list)
    begun: dict[str, Any] | None = None
    prepared: dict[str, Any] | None = None
    ended: bool = False
    unread: int = 0

    @property
    def step(self) -> int:
        """The last step that is known to be done."""
        steps = [int(entry["step"]) for entry in self.entries]
        return max([*steps, int(self.begun["step"]) if self.begun else 0])

    @property
    def seconds_per_step(self) -> float | None:
        """Since the run last began or went on; None before the first logged step."""
        if self.begun is None:
            return None
        since = [entry for entry in self.entries if entry["time"] >= self.begun["time"]]
        done = max((int(entry["step"]) for entry in since), default=0) - int(self.begun["step"])
        if done <= 0:
            return None
        first = next(entry for entry in since if int(entry["step"]) - int(self.begun["step"]) == done)
        return float(first["time"] - self.begun["time"]) / done


def read_log(folder: Path) -> LoggedRun:
    """Read a run's log, whole or broken off.

    Args:
        folder: the run's ``output_dir``.
    """
    run = LoggedRun()
    file = folder / LOG_FILE
    if not file.is_file():
        return run
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        entry = _entry(line)
        if entry is None:
            run.unread += 1
        elif entry["event"] == "prepare":
            run.prepared, run.ended = entry, False
        elif entry["event"] == "begin":
            run.entries = [old for old in run.entries if int(old["step"]) <= int(entry["step"])]
            run.begun, run.ended = entry, False
        elif entry["event"] == "end":
            run.ended = True
        else:
            run.entries.append(entry)
    return run


def _entry(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    known = isinstance(entry, dict) and entry.get("event") in ("prepare", "begin", "log", "end")
    sound = known and all(isinstance(entry.get(name), int | float) for name in ("step", "time"))
    return entry if sound else None
