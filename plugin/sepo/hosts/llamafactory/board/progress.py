"""Abort button and progress bar of LLaMA Board while rows are scored, before training."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from llamafactory.extras.constants import TRAINER_LOG
from llamafactory.extras.misc import is_env_enabled
from tqdm import tqdm

logger = logging.getLogger(__name__)

_ABORTED = 128 + signal.SIGABRT


def _under_board() -> bool:
    return is_env_enabled("LLAMABOARD_ENABLED")


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(_ABORTED)


@contextmanager
def abortable() -> Iterator[None]:
    """Exit immediately when the board aborts the run; the host's handler waits for the end of a training step."""
    before = signal.getsignal(signal.SIGABRT)
    if not _under_board() or before in (signal.SIG_DFL, None):
        yield
        return
    signal.signal(signal.SIGABRT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGABRT, before)


def report_scoring(bar: tqdm[Any], output_dir: str) -> None:
    """Append the progress of scoring to the log file from which the board reads the progress of training.

    Args:
        bar: the progress bar of the terminal.
        output_dir: output directory of the run.
    """
    if not _under_board() or bar.disable or not bar.total:
        return
    logger.info("%s", bar)
    state = bar.format_dict
    done = int(bar.n)
    pace = (done - bar.initial) / state["elapsed"] if state["elapsed"] else 0.0
    line = {
        "current_steps": done,
        "total_steps": bar.total,
        "percentage": round(100 * done / bar.total, 2),
        "elapsed_time": str(timedelta(seconds=int(state["elapsed"]))),
        "remaining_time": str(timedelta(seconds=int((bar.total - done) / pace))) if pace else "?",
    }
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / TRAINER_LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
