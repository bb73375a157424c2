"""Runs of a comparison and steps of its oracle: which are finished, and the others trained, or resumed."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sepo.errors import SepoError, first_line
from sepo.files import write_whole
from sepo.hosts.llamafactory.child_runs import changes, command_line, is_resumable, read_record, train, write_record
from sepo.redaction import redacted, without_secrets

_LOG_BYTES = 200_000
"""End of a run's output in which its error is searched."""
_ERROR = re.compile(r"(sepo: error: |[A-Za-z_][\w.]*(Error|Exception|Interrupt)\b).*")


class NamedRun(Protocol):
    """A run of a comparison, or a step that trains its oracle."""

    @property
    def name(self) -> str:
        """Unique name."""

    @property
    def recipe(self) -> dict[str, Any]:
        """Keys and values of the run."""


@dataclass(frozen=True)
class RunFiles:
    """The files of the runs of a comparison.

    Args:
        root: its ``output_dir``.
        records: name of the directory of the records.
    """

    root: Path
    records: str = "records"

    def output(self, run: NamedRun) -> Path:
        """Directory of a run."""
        return Path(run.recipe["output_dir"])

    def record(self, run: NamedRun, what: str) -> Path:
        """Record of a run: ``started``, ``done``, ``process`` or ``times``, all JSON."""
        return self.root / self.records / f"{run.name}.{what}.json"

    def recipe(self, run: NamedRun) -> Path:
        """Recipe of a run as it is trained, without secrets."""
        return self.root / self.records / f"{run.name}.yaml"

    def log(self, run: NamedRun) -> Path:
        """Output of a run's training."""
        return self.root / self.records / f"{run.name}.log"


def is_finished(run: NamedRun, files: RunFiles) -> bool:
    """Return whether a run is finished, after checks of what an earlier call left.

    Raises:
        SepoError: the run was made with other settings, its directory is not of this comparison, or it is still being
            trained by a process of an earlier call.
    """
    output, now = files.output(run), redacted(run.recipe)
    for what in ("done", "started"):
        before = read_record(files.record(run, what))
        if before is None:
            continue
        changed = changes(before, now)
        if changed is not None:
            raise SepoError(
                f"run '{run.name}' in {output} was made with other settings ({changed}). Choose another output_dir, or "
                f"remove {output} and {files.root / files.records / run.name}.* to make it again."
            )
        if what == "done":
            return True
    if files.record(run, "started").is_file():
        _check_process(run, files)
    elif output.is_dir() and any(output.iterdir()):
        raise SepoError(
            f"{output} exists and was not made by this comparison (no {files.record(run, 'started')}); move it, or "
            "choose another output_dir."
        )
    return False


def _check_process(run: NamedRun, files: RunFiles) -> None:
    """Raise if the process that trained a run is alive, as after a signal to its parent alone."""
    import psutil

    try:
        kept = json.loads(files.record(run, "process").read_text(encoding="utf-8"))
        process = psutil.Process(kept["process"])
        alive = process.create_time() == kept["created"] and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return
    if alive:
        raise SepoError(
            f"run '{run.name}' is still being trained by process {kept['process']}, which an earlier call started; "
            "wait for it, or end it, and run the same command again."
        )


def train_run(run: NamedRun, files: RunFiles, *, environment: Mapping[str, str]) -> str | None:
    """Train a run that is not finished, from its last checkpoint if it has one.

    Args:
        run: the run.
        files: its files.
        environment: environment of the process that trains.

    Returns:
        None, or the error of a run that failed, as one line.
    """
    output, log = files.output(run), files.log(run)
    files.record(run, "started").parent.mkdir(parents=True, exist_ok=True)
    resumed = files.record(run, "started").is_file() and is_resumable(run.recipe)
    if not resumed and output.exists():
        shutil.rmtree(output)  # of an earlier attempt that cannot be resumed; the host would refuse its files
    write_record(files.record(run, "started"), run.recipe)
    start = time.monotonic()
    process = files.record(run, "process")
    with log.open("ab") as stream:
        begin = stream.tell()
        try:
            status = train(
                run.recipe,
                files.recipe(run),
                environment=environment,
                log=stream,
                on_start=lambda number: _record_process(process, number),
            )
        finally:
            process.unlink(missing_ok=True)  # it has ended, unless this process is killed
    if status:
        reason = _last_error(log, begin) or f"exit status {status}"
        return f"{reason} (alone: {command_line(run.recipe, files.recipe(run))})" if status < 0 else reason
    times = {"seconds": round(time.monotonic() - start, 2), "resumed": resumed}
    write_whole(files.record(run, "times"), json.dumps(times) + "\n")
    write_record(files.record(run, "done"), run.recipe)
    return None


def _record_process(file: Path, process: int) -> None:
    import psutil

    try:
        created = psutil.Process(process).create_time()
    except psutil.Error:  # it has ended
        return
    write_whole(file, json.dumps({"process": process, "created": created}) + "\n")


def _last_error(log: Path, begin: int) -> str:
    """Return the last line of a run's output that is an error, or else its last line."""
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - _LOG_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    errors = [line for line in lines if _ERROR.match(line)]
    last = (errors or lines or [""])[-1].removeprefix("sepo: error: ")
    return without_secrets(last)[:500]


def reported(error: Exception) -> str:
    """Return an error of one part of a comparison as one line without secrets; the other parts are made."""
    reason = without_secrets(first_line(error))
    return reason if isinstance(error, SepoError) else f"{type(error).__name__}: {reason}"


def training_seconds(runs: Sequence[NamedRun], files: RunFiles) -> dict[str, dict[str, Any]]:
    """Return the duration of the finished runs by name: ``seconds``, of the last call if it ``resumed``."""
    found = {}
    for run in runs:
        file = files.record(run, "times")
        if file.is_file() and files.record(run, "done").is_file():
            found[run.name] = json.loads(file.read_text(encoding="utf-8"))
    return found
