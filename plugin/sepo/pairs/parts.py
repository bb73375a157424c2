"""Results by work unit, one durable file each, which any number of processes compute at most once."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sepo.errors import SepoError
from sepo.pairs.units import WorkUnit
from sepo.score_store.disk import locked, make_folder, remove_leftovers, replace_durably

logger = logging.getLogger(__name__)

KEY = "pairs_dir"
"""The recipe key that names the directory, for errors of the file system."""

STEPS = ("samples", "rewards")
"""Names of the steps of making pairs."""

Values = list[Any]
"""One JSON value for each sample of a unit, in the unit's order."""


class Parts:
    """The results of one step for all work units, in ``FOLDER/STEP-00000.json`` and so on.

    A file is complete or absent: a process that is killed leaves no other. Every process that works in the directory
    takes the next unit that is neither there nor being computed.

    Args:
        folder: directory of the files.
        step: name of the step, in the names of the files.
        units: all work units.
        settings: digest of the settings that the results depend on; files of other settings count as absent.
        obsolete: returns whether the results were used up, so that absent files are not computed any more.
    """

    def __init__(
        self,
        folder: Path,
        step: str,
        units: Sequence[WorkUnit],
        *,
        settings: str = "",
        obsolete: Callable[[], bool] = lambda: False,
    ) -> None:
        self.folder, self.step, self.units = folder, step, units
        self._settings, self._obsolete = settings, obsolete
        self._present: set[int] = set()

    def values(self, unit: WorkUnit) -> Values:
        """Return the results of a unit.

        Raises:
            SepoError: they are absent: another process has removed the directory.
        """
        found = self._read(unit)
        if found is None:
            raise SepoError(f"{self._path(unit)} has disappeared; run the same command again.")
        return found

    def missing(self) -> list[WorkUnit]:
        """Return the units without results; a file that is damaged counts as absent."""
        return [unit for unit in self.units if not self._is_present(unit)]

    def _is_present(self, unit: WorkUnit) -> bool:
        if unit.index not in self._present and self._read(unit) is not None:
            self._present.add(unit.index)
        return unit.index in self._present

    def fill(
        self,
        compute: Callable[[WorkUnit], Values],
        *,
        on_unit: Callable[[WorkUnit], None] = lambda unit: None,
        poll_seconds: float = 0.5,
    ) -> None:
        """Compute the missing results, and return when all are there, those of other processes included.

        Args:
            compute: returns the results of a unit. Its exceptions propagate; the complete units are kept.
            on_unit: called with every unit whose results become present, computed by any process.
            poll_seconds: interval between checks while only other processes have work left.

        Raises:
            SepoError: the file system refuses.
        """
        make_folder(self.folder, key=KEY)
        pending = self.missing()
        while pending and not self._obsolete():
            elsewhere = []
            for unit in pending:
                if self.settled(unit, compute):
                    on_unit(unit)
                else:
                    elsewhere.append(unit)
            if elsewhere == pending:
                time.sleep(poll_seconds)
            pending = elsewhere

    def settled(self, unit: WorkUnit, compute: Callable[[WorkUnit], Values]) -> bool:
        """Ensure that the results of a unit are there; return False if another process is computing them.

        Args:
            unit: the unit.
            compute: see ``fill``.

        Raises:
            SepoError: the file system refuses.
        """
        if self._is_present(unit):
            return True
        with locked(self.folder / "locks" / f"{self._path(unit).stem}.lock", wait=False, key=KEY) as held:
            if not held:
                return False
            # In this order: a process that has used the results up removes them after it is visible that it has.
            if self._is_present(unit) or self._obsolete():
                return True
            remove_leftovers(self._path(unit))
            found = compute(unit)
            content = {"settings": self._settings, "samples": unit.samples, "values": found}
            data = (json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n").encode()
            replace_durably(path=self._path(unit), data=data, key=KEY)
            self._present.add(unit.index)
        return True

    def _path(self, unit: WorkUnit) -> Path:
        return self.folder / f"{self.step}-{unit.index:05d}.json"

    def _read(self, unit: WorkUnit) -> Values | None:
        path = self._path(unit)
        try:
            content = json.loads(path.read_bytes())
            settings, samples, values = content["settings"], content["samples"], content["values"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is damaged (%r); it is computed again.", path, error)
            return None
        if settings != self._settings or samples != [list(sample) for sample in unit.samples]:
            logger.warning("%s is of a run with other settings; it is computed again.", path)
            return None
        return list(values)


def remove_parts(folder: Path) -> None:
    """Remove the files of all steps; idempotent."""
    shutil.rmtree(folder, ignore_errors=True)
