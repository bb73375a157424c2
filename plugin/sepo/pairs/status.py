"""Progress of `sepo pairs`, from the files that it has written so far."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from sepo.errors import SepoError
from sepo.pairs.directory import PARTS, SETTINGS, SUMMARY
from sepo.pairs.parts import STEPS

_RECENT = 600
"""Seconds without a new file after which the time left is unknown."""


def is_pairs(folder: Path) -> bool:
    """Return whether a directory is one of `sepo pairs`, begun or finished."""
    return (folder / SETTINGS).is_file()


def pairs_progress(folder: Path) -> dict[str, Any]:
    """Return the progress of pairs, as plain JSON values.

    Args:
        folder: the directory of the pairs.

    Returns:
        ``state`` (``sampling``, ``judging`` or ``finished``), numbers of ``prompts``, of ``responses``, and of those
        that are ``sampled`` and ``judged``; ``seconds_left``, None if it is unknown; and the ``summary`` of finished
        pairs.

    Raises:
        SepoError: the settings cannot be read.
    """
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["settings"]
        prompts, samples = int(settings["prompts"]["number"]), int(settings["pairs_samples"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SepoError(
            f"{folder / SETTINGS} cannot be read ({error!r}), expected the settings of sepo pairs; restore the file."
        ) from error
    total, summary = prompts * samples, _summary(folder)
    left: float | None = None
    if summary is not None:
        sampled = judged = total
    else:
        samples_made, rewards_made = (list(_parts(folder, step)) for step in STEPS)
        sampled, judged = (sum(count for count, _ in each) for each in (samples_made, rewards_made))
        left = _seconds_left(samples_made if sampled < total else rewards_made, total)
    return {
        "folder": str(folder),
        "state": "finished" if summary is not None else "sampling" if sampled < total else "judging",
        "prompts": prompts,
        "responses": total,
        "sampled": sampled,
        "judged": judged,
        "seconds_left": left,
        "summary": summary,
    }


def _summary(folder: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SepoError(f"{folder / SUMMARY} cannot be read ({error}); remove it, and sepo pairs writes it.") from error
    return found


def _parts(folder: Path, step: str) -> Iterator[tuple[int, float]]:
    """Yield the number of samples and the time of each complete file of a step; others are being written or damaged."""
    for file in (folder / PARTS).glob(f"{step}-*.json"):
        try:
            yield len(json.loads(file.read_bytes())["samples"]), file.stat().st_mtime
        except (OSError, ValueError, KeyError, TypeError):
            continue


def _seconds_left(parts: list[tuple[int, float]], total: int) -> float | None:
    """Return the time that the rest of a step takes at the pace of its files; None if they are too few.

    Pauses between two runs are not known, so that the pace is too slow after a run that was continued.
    """
    ordered = sorted(parts, key=lambda part: part[1])
    if len(ordered) < 2 or time.time() - ordered[-1][1] > _RECENT:
        return None
    done = sum(count for count, _ in ordered)
    seconds, counted = ordered[-1][1] - ordered[0][1], done - ordered[0][0]
    return (total - done) * seconds / counted if counted and seconds > 0 else None


def pairs_lines(progress: Mapping[str, Any]) -> list[str]:
    """Return the lines that `sepo status` prints."""
    total = progress["responses"]
    lines = [f"{progress['folder']}: sepo pairs, {progress['state']}; {progress['prompts']:,} prompts"]
    for name in ("sampled", "judged"):
        lines.append(f"{name}: {progress[name]:,} of {total:,} responses ({progress[name] / total:.0%})")
    if progress["seconds_left"]:
        lines.append(f"{timedelta(seconds=round(progress['seconds_left']))} left of {progress['state']}")
    summary = progress["summary"]
    if summary is None:
        return [*lines, "the same command continues an interrupted run"]
    return [
        *lines,
        f"pairs: {summary['pairs']:,} of {summary['prompts']:,} prompts ({summary['pairs'] / summary['prompts']:.0%}), "
        f"{summary['ties']:,} ties, {summary['truncated']:,} truncated responses",
        f"mean reward {summary['reward']:.4g}, margin {summary['margin']:.4g}; data set: dataset_dir: "
        f"{progress['folder']}, dataset: pairs",
    ]
