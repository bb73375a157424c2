"""Work that is measured beside the contenders, on the same batches, and is no trainer of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from sepo.hosts.llamafactory.bench.session import Session


class External(Protocol):
    """Timed work, for example the training step of another library in another process.

    Args:
        name: its name in the result.
        label: its name in the table.
        facts: plain JSON values that are added to its entry of the result, for example its versions.
    """

    name: str
    label: str
    facts: dict[str, Any]

    def step(self, batch: int) -> float | None:
        """Run it on a round's batch; return its loss, or None if it has none."""

    def settle(self) -> None:
        """Clean up after a step, untimed."""

    def peak_memory(self, batches: Sequence[int]) -> int | None:
        """Return its peak memory in bytes in addition to the loaded model, or None if it is not measured."""


Opened = Callable[[Session], AbstractContextManager[Sequence[External]]]
"""Opens external work on a session's model and batches."""


@contextmanager
def no_externals(session: Session) -> Iterator[Sequence[External]]:
    """Measure the contenders only."""
    yield ()
