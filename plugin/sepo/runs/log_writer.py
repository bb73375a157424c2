"""Writer of a run's log: all metrics of training and evaluation, one line per logging step, as they are logged.

The trainer's state is written with checkpoints only, and the host's log has only some of the metrics. `sepo status`
reads this file during a run. A run that resumes appends to the same file.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from transformers import TrainerCallback

from sepo.runs.log_reader import LOG_FILE
from sepo.training.row_losses import RowLosses


class RunLog(TrainerCallback):
    """Trainer callback that appends to the log, in the first process only."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the step at which the run starts or resumes."""
        self._write(args, state, event="begin", step=state.global_step, total_steps=state.max_steps, **_process())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Log the metrics."""
        numbers = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        if state.max_steps > 0 and numbers:
            self._write(args, state, event="log", step=state.global_step, **numbers)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log that training has ended."""
        self._write(args, state, event="end", step=state.global_step)

    def _write(self, args: Any, state: Any, **values: Any) -> None:
        if state.is_world_process_zero:
            _append(Path(args.output_dir), values)


def note_preparation(folder: Path, **values: Any) -> None:
    """Log that a run scores its rows or loads its models, before a trainer exists.

    Args:
        folder: the run's ``output_dir``.
        **values: stage, objective and token scorer of the run, as plain JSON values.
    """
    _append(folder, {"event": "prepare", "step": 0, **_process(), **values})


def note_rows(folder: Path, losses: RowLosses) -> None:
    """Log how many rows of each data set a run was given and uses, and what happened to the others.

    Args:
        folder: the run's ``output_dir``.
        losses: the numbers, complete.
    """
    _append(folder, {"event": "rows", "step": 0, "rows": losses.record()})


def note_scores(folder: Path, scores: Mapping[str, Any], credit: Mapping[str, Any] | None) -> None:
    """Log how the scores of a run compare with noise and with marked errors.

    Args:
        folder: the run's ``output_dir``.
        scores: by data set, ``Chance.as_dict()``.
        credit: ``Credit.as_dict()`` of the rows of ``credit_data``, or None without them.
    """
    _append(folder, {"event": "scores", "step": 0, "scores": scores, "credit": credit})


def note_warning(folder: Path, *, step: int, text: str) -> None:
    """Log a warning of a run that trains.

    Args:
        folder: the run's ``output_dir``.
        step: the step of the warning.
        text: the warning.
    """
    _append(folder, {"event": "warning", "step": step, "text": text})


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
