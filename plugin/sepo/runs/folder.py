"""Reader of a run's recipe, versions and log. Missing or damaged files are reported as sentences, not raised."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from sepo.redaction import redacted
from sepo.runs.log_reader import LOG_FILE, SETTINGS_FILE, read_log
from sepo.runs.provenance import RECIPE_FILE
from sepo.runs.token_samples_reader import RECORD_FILE

STATE_FILE, HOST_LOG_FILE = "trainer_state.json", "trainer_log.jsonl"
RUN_FILES = (SETTINGS_FILE, LOG_FILE, RECORD_FILE, STATE_FILE, HOST_LOG_FILE)
"""A directory with any of these files is the ``output_dir`` of a run."""

_NO_METRICS = ("event", "time", "step", "process", "total_steps", "current_steps", "percentage")
_HOST_NAMES = {"lr": "learning_rate", "accuracy": "rewards/accuracies"}
"""Names of the trainer's metrics by their names in the host's log."""


def read_object(file: Path, missing: list[str], *, consequence: str) -> dict[str, Any]:
    """Read a JSON object; return an empty one, and append a sentence to ``missing``, if there is none.

    Args:
        file: the file.
        missing: list to which the sentence is appended.
        consequence: end of the sentence, the consequence for the reader.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        missing.append(f"{file.name} does not exist: {consequence}.")
        return {}
    except (OSError, ValueError, RecursionError) as error:
        missing.append(f"{file.name} cannot be read ({_first_line(error)}): {consequence}.")
        return {}
    if not isinstance(found, dict):
        missing.append(f"{file.name} holds {type(found).__name__}, expected a JSON object: {consequence}.")
        return {}
    return found


def read_recipe(folder: Path, missing: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the recipe and the package versions of a run."""
    consequence = "recipe and package versions are unknown (older versions of sepo did not record them)"
    record = read_object(folder / RECIPE_FILE, missing, consequence=consequence)
    recipe, versions = record.get("recipe"), record.get("versions")
    if record and not (isinstance(recipe, dict) and isinstance(versions, dict)):
        missing.append(f"{RECIPE_FILE} lacks recipe or versions.")
    return (
        redacted(recipe) if isinstance(recipe, dict) else {},  # an earlier version may have recorded more
        {name: str(value) for name, value in versions.items()} if isinstance(versions, dict) else {},
    )


def read_numbers(folder: Path, missing: list[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the logged metrics of a run, and its stage, objective and token scorer according to the log.

    The first source with entries is used: the run's log, the trainer's state (or that of the last checkpoint), the
    host's log.
    """
    about: dict[str, Any] = {}
    entries: list[Any] = []
    try:
        run = read_log(folder)
    except OSError as error:
        missing.append(f"{LOG_FILE} cannot be read ({_first_line(error)}).")
    else:
        entries = run.entries
        about = dict(run.prepared or {})
        if run.unread:
            missing.append(f"{run.unread} lines of {LOG_FILE} cannot be read; the others are shown.")
        if not run.ended and (run.begun or run.prepared):
            of = f" of {run.begun['total_steps']}" if run.begun and "total_steps" in run.begun else ""
            missing.append(
                f"Training had not finished (step {run.step}{of}) when this was read: it is still running, or it was "
                "stopped; see `sepo status`."
            )
    if not entries:
        entries = _trainers_history(folder, missing) or _hosts_log(folder, missing)
    numbers = list(_numbers(entries, missing))
    if not numbers:
        missing.append(
            "No training metrics were found: the run ended before its first logging step, or its log was removed."
        )
    return numbers, about


def _trainers_history(folder: Path, missing: list[str]) -> list[Any]:
    file = folder / STATE_FILE
    if not file.is_file():
        found = [
            (int(match.group(1)), path / STATE_FILE)
            for path in folder.glob("checkpoint-*")
            if (match := re.fullmatch(r"checkpoint-(\d{1,18})", path.name)) and (path / STATE_FILE).is_file()
        ]
        if not found:
            return []
        file = max(found)[1]
    history = read_object(file, missing, consequence="its metrics are not shown").get("log_history")
    if not isinstance(history, list):
        return []
    return history


def _hosts_log(folder: Path, missing: list[str]) -> list[Any]:
    try:
        lines = (folder / HOST_LOG_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        missing.append(f"{HOST_LOG_FILE} cannot be read ({_first_line(error)}).")
        return []
    entries = [entry for line in lines if isinstance(entry := _parsed(line), dict)]
    if len(entries) < len(lines):
        missing.append(f"{len(lines) - len(entries)} lines of {HOST_LOG_FILE} cannot be read; the others are shown.")
    return [
        {"step": entry.get("current_steps"), **{_HOST_NAMES.get(name, name): value for name, value in entry.items()}}
        for entry in entries
    ]


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _numbers(entries: Iterable[Any], missing: list[str]) -> Iterable[dict[str, Any]]:
    """Yield the entries that have a step, with finite numbers only."""
    left_out: dict[str, int] = {}
    for entry in entries:
        step = entry.get("step") if isinstance(entry, Mapping) else None
        if not is_number(step) or abs(step) >= 1e18:
            left_out["(no step)"] = left_out.get("(no step)", 0) + 1
            continue
        values = {str(name): value for name, value in entry.items() if name not in _NO_METRICS}
        good = {name: value for name, value in values.items() if is_number(value)}
        for name in values.keys() - good.keys():
            if isinstance(values[name], int | float):  # strings are no damage: the host logs times as strings
                left_out[name] = left_out.get(name, 0) + 1
        if good:
            yield {"step": int(step), **good}
    if left_out:
        named = ", ".join(f"{name} {count} times" for name, count in sorted(left_out.items())[:8])
        missing.append(f"Logged values that are not finite numbers are omitted: {named}.")


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value from a file is a finite number that a float can represent."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _first_line(error: BaseException) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (reason.strip().splitlines() or [type(error).__name__])[0][:200]
