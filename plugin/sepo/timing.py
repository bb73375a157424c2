"""Seconds of a command: imports by package, and its own work by step (``--timing``)."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ExtensionFileLoader, ModuleSpec, SourceFileLoader
from types import ModuleType
from typing import Any

_OWN = "sepo"
_SHOWN = 12
"""Packages and steps that are shown, the others as one sum."""


@dataclass(frozen=True)
class Seconds:
    """Seconds by the clock, and of this process's CPU time."""

    clock: float = 0.0
    cpu: float = 0.0

    @classmethod
    def now(cls) -> Seconds:
        """Return the present readings of both clocks; the first is the same for all processes of a machine."""
        return cls(time.monotonic(), time.process_time())

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.clock + other.clock, self.cpu + other.cpu)

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.clock - other.clock, self.cpu - other.cpu)

    def __str__(self) -> str:
        return f"{self.clock:.2f} s (CPU {self.cpu:.2f} s)"


class Timing:
    """Seconds of named steps, and of the imports that happen during them.

    Args:
        start: when the command started; None for now.

    Attributes:
        imports: seconds by top-level package, each without the packages that it imports.
        steps: seconds by step, without imports.
    """

    def __init__(self, start: Seconds | None = None) -> None:
        self.imports: dict[str, Seconds] = {}
        self.steps: dict[str, Seconds] = {}
        self._start = Seconds.now() if start is None else start
        self._lap = self._start
        self._imported = Seconds()
        self._open: list[Seconds] = []  # of each module that is being imported: seconds of the modules that it imports

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Count the block as a step of this name, without its imports. Blocks of one name add up; do not nest them."""
        start, imported = Seconds.now(), self._imported
        try:
            yield
        finally:
            spent = Seconds.now() - start - (self._imported - imported)
            self.steps[name] = self.steps.get(name, Seconds()) + spent

    def lap(self, name: str) -> None:
        """Count the time since the last lap, or since the start, as a step, with its imports; not to mix with steps."""
        now = Seconds.now()
        self.steps[name], self._lap = now - self._lap, now

    @property
    def laps(self) -> str:
        """The steps in their order."""
        return ", ".join(f"{name} {spent}" for name, spent in self.steps.items())

    @contextmanager
    def watching_imports(self) -> Iterator[None]:
        """Count the imports of the main thread in the block, by wrapping Python's loaders of files."""
        wrapped = ((SourceFileLoader, "exec_module"), (ExtensionFileLoader, "create_module"),
                   (ExtensionFileLoader, "exec_module"))  # fmt: skip
        before = [(kind, name, vars(kind).get(name), getattr(kind, name)) for kind, name in wrapped]
        for kind, name, _, function in before:
            setattr(kind, name, self._timed(function))
        try:
            yield
        finally:
            for kind, name, own, _ in before:
                if own is None:  # inherited
                    delattr(kind, name)
                else:
                    setattr(kind, name, own)

    def _timed(self, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        @functools.wraps(function)
        def load(loader: Any, loaded: ModuleSpec | ModuleType) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return function(loader, loaded)
            start = Seconds.now()
            self._open.append(Seconds())
            try:
                return function(loader, loaded)
            finally:
                spent, inner = Seconds.now() - start, self._open.pop()
                name = loaded.name if isinstance(loaded, ModuleSpec) else loaded.__name__
                package = name.partition(".")[0]
                self.imports[package] = self.imports.get(package, Seconds()) + spent - inner
                if self._open:
                    self._open[-1] += spent
                else:
                    self._imported += spent

        return load

    def lines(self) -> list[str]:
        """Return a report of three lines: totals, imports by package, and own work by step, the longest first.

        Modules of this package count as own work.
        """
        total = Seconds.now() - self._start
        imports = {name: spent for name, spent in self.imports.items() if name != _OWN}
        imported = sum(imports.values(), Seconds())
        own = total - imported
        steps = {**self.steps, "modules of sepo": self.imports.get(_OWN, Seconds())}
        steps["rest"] = own - sum(steps.values(), Seconds())
        return [
            f"timing: {total}; imports {imported}, own work {own}",
            f"  imports: {_longest(imports)}",
            f"  own work: {_longest(steps)}",
        ]


def _longest(parts: dict[str, Seconds]) -> str:
    ordered = sorted(parts.items(), key=lambda item: -item[1].clock)
    shown = [f"{name} {spent}" for name, spent in ordered[:_SHOWN]]
    rest = ordered[_SHOWN:]
    if rest:
        shown.append(f"{len(rest)} others {sum((spent for _, spent in rest), Seconds())}")
    return ", ".join(shown)
