"""Checks one after the other in a worker process, each with a time budget, with a record of every outcome.

The worker runs all checks, so that imports and models are loaded once. It is replaced, and the remaining checks run in
a new one, if a check exceeds its budget, kills the process or leaves the GPU unusable.
"""

import fnmatch
import gc
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

PASSED, FAILED, ERROR, TIMEOUT, SKIPPED = STATUSES = ("passed", "failed", "error", "timeout", "skipped")
BAD = (FAILED, ERROR, TIMEOUT)
_UNUSABLE = ("CUDA error", "device-side assert", "illegal memory access", "unspecified launch failure")
_START_SECONDS = 120
"""Time that a new worker has for its imports and for the description of the machine."""


class Skip(Exception):
    """A check that cannot run here; the text is the reason."""


class Failure(Exception):
    """A check whose criterion is not met.

    Args:
        reason: what was found and what was expected.
        values: the numbers of the check, which are recorded, too.
    """

    def __init__(self, reason: str, values: dict[str, Any]) -> None:
        super().__init__(reason)
        self.values = values


@dataclass(frozen=True)
class Check:
    """A check.

    Args:
        name: ``<group>/<name>``.
        run: takes the context (see ``gpu_check.Context``) and returns plain JSON values; raises ``Skip`` or
            ``Failure``.
        seconds: time budget.
    """

    name: str
    run: Callable[[Any], dict[str, Any]]
    seconds: float

    def entry(self, status: str, reason: str | None = None, **more: Any) -> dict[str, Any]:
        """Return the record of an outcome."""
        return {
            "name": self.name,
            "status": status,
            "reason": reason,
            "seconds": 0.0,
            "budget_seconds": self.seconds,
            "values": {},
            **more,
        }


def chosen(checks: list[Check], patterns: list[str]) -> list[Check]:
    """Return the checks whose names match one of the patterns (``speed/*``); all of them without patterns."""
    return [each for each in checks if not patterns or any(fnmatch.fnmatch(each.name, p) for p in patterns)]


def outcome(check: Check, context: Any) -> dict[str, Any]:
    """Run a check in this process and return its record."""
    start = time.perf_counter()
    try:
        entry = check.entry(PASSED, values=check.run(context))
        json.dumps(entry)  # numbers of torch or numpy are an error of this check, not of the file
    except Skip as reason:
        entry = check.entry(SKIPPED, str(reason))
    except Failure as failure:
        entry = check.entry(FAILED, str(failure), values=failure.values)
    except Exception as error:
        lines = traceback.format_exc().strip().splitlines()
        entry = check.entry(ERROR, f"{type(error).__name__}: {error}"[:1000], traceback=lines[-12:])
    return {**entry, "seconds": round(time.perf_counter() - start, 3)}


@dataclass
class Runner:
    """Run of some checks.

    Args:
        checks: the checks, in their order.
        context: a function that is called in the worker and returns what the checks take; its attribute ``machine``
            is recorded.
        seconds: time for all checks together; checks that are not reached are recorded as skipped.
        on_entry: called with every record as soon as it exists.
        on_machine: called with the description of the machine.
    """

    checks: list[Check]
    context: Callable[[], Any]
    seconds: float
    on_entry: Callable[[dict[str, Any]], None]
    on_machine: Callable[[dict[str, Any]], None]
    _end: float = field(init=False, default=0.0)

    def run(self) -> None:
        """Run the checks."""
        self._end = time.monotonic() + self.seconds
        left = list(self.checks)
        while left:
            if self._remaining() <= 0:
                for check in left:
                    self.on_entry(check.entry(SKIPPED, f"not reached within {self.seconds:.0f} s"))
                return
            left = self._in_worker(left)

    def _remaining(self) -> float:
        return self._end - time.monotonic()

    def _in_worker(self, checks: list[Check]) -> list[Check]:
        """Run checks in a new worker until it must be replaced; return the checks that are left."""
        # Forked before anything initializes CUDA: this process imports neither torch nor a host.
        system = multiprocessing.get_context("fork")
        here, there = system.Pipe()
        worker = system.Process(target=_work, args=(checks, self.context, there, here), daemon=False)
        worker.start()
        there.close()
        try:
            status, answer = self._answer(here, min(_START_SECONDS, self._remaining()))
            if status != "ready":
                for check in checks:
                    self.on_entry(check.entry(ERROR, f"the worker did not start: {answer}"))
                return []
            self.on_machine(answer)
            for index, check in enumerate(checks):
                allowed = min(check.seconds, self._remaining())
                if allowed <= 0:
                    return checks[index:]
                here.send(index)
                status, answer = self._answer(here, allowed)
                if status == "timeout":
                    self.on_entry(check.entry(TIMEOUT, f"exceeded {allowed:.0f} s", seconds=round(allowed, 3)))
                    return checks[index + 1 :]
                if status == "dead":
                    self.on_entry(check.entry(ERROR, answer))
                    return checks[index + 1 :]
                self.on_entry(answer)
                if any(sign in (answer["reason"] or "") for sign in _UNUSABLE):
                    return checks[index + 1 :]
            return []
        finally:
            _end(worker)
            here.close()

    @staticmethod
    def _answer(pipe: Any, seconds: float) -> tuple[str, Any]:
        try:
            if not pipe.poll(seconds):
                return "timeout", f"no answer within {seconds:.0f} s"
            return pipe.recv()
        except (EOFError, OSError):
            return "dead", "the process ended, for example by a signal or for lack of memory"


def _end(worker: Any) -> None:
    """End a worker and the processes that it started."""
    try:
        os.killpg(worker.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # before it has made its own group
        worker.kill()
    worker.join()


def _work(checks: list[Check], context: Callable[[], Any], pipe: Any, other: Any) -> None:
    """Body of the worker: run the checks whose indices come through the pipe."""
    os.setpgid(0, 0)
    other.close()
    sys.stdout.flush()
    os.dup2(2, 1)  # what the host prints does not belong to the results
    try:
        made = context()
    except Exception as error:
        traceback.print_exc()
        pipe.send(("failed", f"{type(error).__name__}: {error}"))
        return
    pipe.send(("ready", made.machine))
    while True:
        check = checks[pipe.recv()]
        entry = outcome(check, made)
        gc.collect()
        made.after_check()
        pipe.send(("done", entry))
