"""`sepo status`: progress of a run, from the files that it has written so far."""

from __future__ import annotations

import json
import math
import os
import re
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

from sepo.errors import SepoError
from sepo.runs.log_reader import LOG_FILE, SETTINGS_FILE, LoggedRun, read_log, warning_texts
from sepo.runs.settings_texts import recorded_factors, recorded_objective, recorded_weight

_STORES = ("token_scores", "token_reward_scores", "reference_scores", "registered_scores")
_SELECTED = {"select/chosen_ratio": "chosen", "select/rejected_ratio": "rejected"}
_EFFECTIVE = {"select/chosen_effective": "chosen", "select/rejected_effective": "rejected"}
_EMPTY = "objective/empty_pair"


def status(folder: Path, *, as_json: bool = False) -> dict[str, Any]:
    """Print the progress of a run.

    Args:
        folder: the run's ``output_dir``.
        as_json: print JSON.

    Returns:
        The progress, as plain JSON values.

    Raises:
        SepoError: If the directory does not exist or holds no run of a sepo stage.
    """
    progress = run_status(folder)
    if as_json:
        print(json.dumps(plain_values(progress), indent=1, allow_nan=False))
    else:
        print("\n".join(status_lines(progress)))
    return progress


def run_status(folder: Path) -> dict[str, Any]:
    """Return the progress of a run, from the files in its directory.

    Raises:
        SepoError: If the directory does not exist or holds no run of a sepo stage.
    """
    if not folder.is_dir():
        raise SepoError(f"'{folder}' does not exist (from {os.getcwd()}), expected the output_dir of a run.")
    settings = _settings(folder)
    run = read_log(folder)
    if settings is None and run.begun is None and run.prepared is None:
        raise SepoError(
            f"'{folder}' has no {SETTINGS_FILE} and no {LOG_FILE}: no run of a sepo stage has started there; give the "
            "output_dir of a run."
        )
    total = None if run.begun is None else int(run.begun["total_steps"])
    pace = run.seconds_per_step
    last = _last(run)
    return {
        "folder": str(folder),
        **{name: (run.prepared or settings or {}).get(name) for name in ("stage", "objective", "token_scorer")},
        "factors": recorded_factors(settings or {}) or None,
        "state": _state(run),
        "step": run.step,
        "total_steps": total,
        "seconds_per_step": pace,
        "seconds_left": None if pace is None or total is None or run.ended else max(0, total - run.step) * pace,
        "rows": run.rows,
        "last": last,
        "warnings": warning_texts(run),
        "selected": {side: last[name] for name, side in _SELECTED.items() if name in last},
        "token_weight": recorded_weight(settings or {}) or None,
        "effective_tokens": {side: last[name] for name, side in _EFFECTIVE.items() if name in last},
        "pairs_without_selected_tokens": last.get(_EMPTY),
        "checkpoint": _checkpoint(folder),
        "stores": {
            f"{what}/{name}": {"folder": path, "there": Path(path).is_dir()}
            for what in _STORES
            for name, path in ((settings or {}).get(what) or {}).items()
        },
        "unread_lines": run.unread,
    }


def plain_values(value: Any) -> Any:
    """Replace values that JSON cannot represent (NaN, infinities) by strings."""
    if isinstance(value, dict):
        return {name: plain_values(item) for name, item in value.items()}
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _settings(folder: Path) -> dict[str, Any] | None:
    file = folder / SETTINGS_FILE
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SepoError(f"{file} cannot be read as JSON: {error}") from error
    return values if isinstance(values, dict) else None


def _state(run: LoggedRun) -> str:
    """Return ``preparing`` (scoring, or loading models), ``running``, ``ended``, ``stopped`` (killed, or by an error)
    or ``unknown`` (on another machine)."""
    lines = [line for line in (run.prepared, run.begun) if line is not None]
    if not lines:
        return "stopped"
    if run.ended:
        return "ended"
    latest = max(lines, key=lambda line: float(line["time"]))
    if latest.get("machine") != socket.gethostname():
        return "unknown"
    if not _is_alive(latest):
        return "stopped"
    return "running" if latest is run.begun else "preparing"


def _is_alive(line: dict[str, Any]) -> bool:
    import psutil

    try:
        process = psutil.Process(line["process"])
        # Process ids are reused: the process must have started before the run did.
        return process.create_time() <= line["time"] and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def _last(run: LoggedRun) -> dict[str, Any]:
    """Return the latest value of every metric."""
    last: dict[str, Any] = {}
    for entry in run.entries:
        last |= {name: value for name, value in entry.items() if name not in ("event", "step", "time")}
    return last


def _checkpoint(folder: Path) -> str | None:
    numbered = [(int(match.group(1)), path.name) for path in folder.iterdir()
                if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))]  # fmt: skip
    return max(numbered)[1] if numbered else None


def status_lines(progress: dict[str, Any]) -> list[str]:
    """Return the lines that `sepo status` prints for a run."""
    state = {
        "unknown": "on another machine; whether it is running cannot be determined here",
        "stopped": "stopped before its last step",
    }.get(progress["state"], progress["state"])
    objective = recorded_objective(progress) or progress["objective"]
    lines = [f"{progress['folder']}: stage {progress['stage']}, objective {objective}, {state}"]
    if progress["state"] == "preparing":
        lines.append("scoring rows or loading models; training has not started")
    if progress["total_steps"]:
        step, total = progress["step"], progress["total_steps"]
        done = f"step {step:,} of {total:,} ({step / total:.0%})"
        pace = progress["seconds_per_step"]
        left = progress["seconds_left"]
        if pace is not None:
            done += f", {pace:.2f} s per step"
        if left and progress["state"] != "stopped":
            done += f", {timedelta(seconds=round(left))} left"
        lines.append(done)
    lines += [_rows(name, numbers) for name, numbers in progress["rows"].items()]
    if progress["last"]:
        apart = {*_SELECTED, *_EFFECTIVE, _EMPTY}
        shown = {name: value for name, value in progress["last"].items() if name not in apart}
        lines.append("last: " + ", ".join(f"{name} {value:.4g}" for name, value in shown.items()))
    if progress["selected"]:
        empty = progress["pairs_without_selected_tokens"]
        shares = [f"{share:.1%} of {side}" for side, share in progress["selected"].items()]
        shares += [] if empty is None else [f"{empty:.1%} of pairs without a selected token in a response"]
        lines.append(f"selected: {', '.join(shares)}")
    if progress["token_weight"]:
        numbers = [
            f"{count:.1f} effective tokens per {side} response" for side, count in progress["effective_tokens"].items()
        ]
        lines.append(f"token weight: {', '.join([progress['token_weight'], *numbers])}")
    lines += [f"warning: {text}" for text in progress["warnings"]]
    if progress["checkpoint"]:
        lines.append(f"checkpoint: {progress['checkpoint']}")
    for name, store in progress["stores"].items():
        lines.append(f"{name}: {store['folder']}" + ("" if store["there"] else " (no longer exists)"))
    if progress["state"] == "stopped":
        lines.append(
            "the same command resumes from this checkpoint (unless it sets overwrite_output_dir)"
            if progress["checkpoint"]
            else "no checkpoint was saved, so the same command starts from the beginning"
        )
    return lines


def _rows(name: str, numbers: Any) -> str:
    """Format how many rows of a data set are used, and what happened to others."""
    losses = [f"{loss['rows']:,} {loss.get('what')}: {loss.get('reason')}" for loss in numbers["losses"]]
    given = f"rows of {name}: {numbers['used']:,} of {numbers['given']:,}"
    return f"{given} ({'. '.join(losses)})" if losses else given
