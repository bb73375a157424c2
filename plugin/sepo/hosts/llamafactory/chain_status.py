"""Progress of `sepo pipeline`, from the records of its steps and the files that they have written so far."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sepo.errors import SepoError
from sepo.pairs.status import is_pairs, pairs_lines, pairs_progress
from sepo.runs.status import run_status, status_lines

RECORDS = "pipeline"
"""Name of the directory of the steps' records, beside those of the steps."""
DONE, STARTED, RECIPE = ".done.json", ".started.json", ".yaml"
"""Ends of the names of a step's records: that it is finished, that it was started, and the recipe for the trainer."""
_STEPS = ("pairs", "sample", "base", "oracle", "policy")
_ORACLE = re.compile(r"oracle(?:_reversed|_rejected)?(?:_([0-9]+))?")
"""Names of the steps that train oracles and the models that they are compared with; with a number from the second."""
_ROUND = re.compile(r"round_([0-9]+)")


def is_pipeline(folder: Path) -> bool:
    """Return whether a directory is the ``output_dir`` of a pipeline."""
    return bool(_started(folder / RECORDS))


def pipeline_progress(folder: Path) -> dict[str, Any]:
    """Return the progress of a pipeline, as plain JSON values.

    Args:
        folder: its ``output_dir``.

    Returns:
        ``steps``: of each step that was started, ``name``, ``round``, ``state`` (``finished`` or ``started``),
        ``folder``, and for a started one its ``progress`` as `sepo status` has it, None if it has written none yet.
        The steps that follow are not known: the recipe of the pipeline is not in its records.

    Raises:
        SepoError: a file of a step cannot be read.
    """
    return {"folder": str(folder), "steps": [step for number, place in _rounds(folder) for step in _of(place, number)]}


def _rounds(folder: Path) -> list[tuple[int, Path]]:
    later = [
        (int(found.group(1)), place) for place in folder.glob("round_*") if (found := _ROUND.fullmatch(place.name))
    ]
    return [(1, folder), *sorted(later)]


def _of(folder: Path, number: int) -> Iterator[dict[str, Any]]:
    records = folder / RECORDS
    for name in _started(records):
        done = (records / f"{name}{DONE}").is_file()
        state = "finished" if done else "started"
        progress = None if done else _progress(folder / name)
        yield {"name": name, "round": number, "state": state, "folder": str(folder / name), "progress": progress}


def is_oracle(step: str) -> bool:
    """Return whether a step trains an oracle, or the model that one is compared with."""
    return _ORACLE.fullmatch(step) is not None


def _started(records: Path) -> list[str]:
    """Return the names of the steps with a record, in the order in which they run."""
    files = (file.name for end in (DONE, RECIPE) for file in records.glob(f"*{end}"))
    names = {name.removesuffix(DONE).removesuffix(RECIPE) for name in files}

    def place(name: str) -> tuple[int, int, str]:
        found = _ORACLE.fullmatch(name)
        return (_STEPS.index("oracle" if found else name), int(found.group(1) or 1) if found else 0, name)

    return sorted((name for name in names if name in _STEPS or is_oracle(name)), key=place)


def _progress(folder: Path) -> dict[str, Any] | None:
    if is_pairs(folder):
        return pairs_progress(folder)
    try:
        return run_status(folder)
    except SepoError:  # nothing is written yet, or the stage is the host's
        return None


def pipeline_lines(progress: Mapping[str, Any]) -> list[str]:
    """Return the lines that `sepo status` prints."""
    steps = progress["steps"]
    several = any(step["round"] > 1 for step in steps)
    lines = [f"{progress['folder']}: sepo pipeline, {sum(s['state'] == 'finished' for s in steps)} steps finished"]
    for step in steps:
        title = f"round {step['round']}, {step['name']}" if several else step["name"]
        lines.append(f"{title}: {step['state']}, {step['folder']}")
        if step["progress"] is not None:
            own = pairs_lines if "responses" in step["progress"] else status_lines
            lines += [f"  {line}" for line in own(step["progress"])[1:]]
    return lines
