"""Reader of a run's log, complete or truncated. Imports neither torch nor transformers.

The file is written by ``sepo.runs.log_writer``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SETTINGS_FILE = "sepo_settings.json"
"""File in the run's ``output_dir``: its settings, and the paths of its score stores."""
LOG_FILE = "sepo_log.jsonl"
"""File in the run's ``output_dir``: one JSON object per line."""


_EVENTS = ("prepare", "rows", "scores", "begin", "log", "warning", "end")


@dataclass
class LoggedRun:
    """Content of a run's log.

    Attributes:
        entries: logged metrics, with ``step`` and ``time``, in order; for steps that a resumed run repeated, those of
            the later pass.
        begun: the last entry written when the run started or resumed, or None.
        prepared: the last entry written when it started scoring or loading models, or None.
        rows: the last entry about the rows: by data set ``given``, ``used`` and ``losses`` (see ``RowLosses.record``).
        warnings: warnings of the training, with ``step`` and ``text``, in order; without those of steps that a resumed
            run repeated.
        scores: the last entry about the scores: ``scores`` by data set and ``credit`` (see ``note_scores``).
        seconds: seconds of training by logged step, evaluations during training included. The time between an
            interruption and its resumption is not counted, nor are steps that a resumed run repeated.
        ended: whether training ended afterwards.
        unread: number of lines that could not be read (e.g. the last one of a killed run).
    """

    entries: list[dict[str, Any]] = field(default_factory=list)
    begun: dict[str, Any] | None = None
    prepared: dict[str, Any] | None = None
    rows: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    warnings: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[int, float] = field(default_factory=dict)
    ended: bool = False
    unread: int = 0

    @property
    def step(self) -> int:
        """Last step that is logged as done."""
        steps = [int(entry["step"]) for entry in self.entries]
        return max([*steps, int(self.begun["step"]) if self.begun else 0])

    @property
    def seconds_per_step(self) -> float | None:
        """Seconds per step since the run last started or resumed; None before the first logged step."""
        if self.begun is None:
            return None
        since = [entry for entry in self.entries if entry["time"] >= self.begun["time"]]
        done = max((int(entry["step"]) for entry in since), default=0) - int(self.begun["step"])
        if done <= 0:
            return None
        first = next(entry for entry in since if int(entry["step"]) - int(self.begun["step"]) == done)
        return float(first["time"] - self.begun["time"]) / done


def read_log(folder: Path) -> LoggedRun:
    """Read a run's log, complete or truncated.

    Args:
        folder: the run's ``output_dir``.
    """
    run, earlier = LoggedRun(), 0.0
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
            run.warnings = [old for old in run.warnings if int(old["step"]) <= int(entry["step"])]
            run.seconds = {step: seconds for step, seconds in run.seconds.items() if step <= int(entry["step"])}
            run.begun, run.ended, earlier = entry, False, max(run.seconds.values(), default=0.0)
        elif entry["event"] == "rows":
            run.rows = entry["rows"]
        elif entry["event"] == "scores":
            run.scores = entry
        elif entry["event"] == "warning":
            run.warnings.append(entry)
        elif entry["event"] == "end":
            run.ended = True
        else:
            run.entries.append(entry)
            if run.begun is not None:
                run.seconds[int(entry["step"])] = earlier + max(0.0, float(entry["time"] - run.begun["time"]))
    return run


def logged_warnings(folder: Path) -> list[str]:
    """Return the warnings of a run's training, each with its step."""
    return warning_texts(read_log(folder))


def warning_texts(run: LoggedRun) -> list[str]:
    """Format the warnings of a run's training."""
    return [f"step {int(entry['step']):,}: {entry['text']}" for entry in run.warnings]


def _entry(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    known = isinstance(entry, dict) and entry.get("event") in _EVENTS
    if not known or not all(_is_finite(entry.get(name)) for name in ("step", "time")):
        return None
    sound = {"rows": lambda: _is_record(entry.get("rows")), "warning": lambda: isinstance(entry.get("text"), str)}
    return entry if sound.get(entry["event"], lambda: True)() else None


def _is_record(rows: object) -> bool:
    """Return whether a value is what ``RowLosses.record`` returns."""
    return isinstance(rows, dict) and all(
        isinstance(account, dict)
        and all(_is_finite(account.get(name)) for name in ("given", "used"))
        and isinstance(account.get("losses"), list)
        and all(isinstance(loss, dict) and _is_finite(loss.get("rows")) for loss in account["losses"])
        for account in rows.values()
    )


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e18  # so that int() of it has a usual size as well
