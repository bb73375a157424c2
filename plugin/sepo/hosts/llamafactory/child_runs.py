"""Training runs in processes of their own, with records by which a later call recognizes them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf

from sepo.files import write_whole
from sepo.hosts.llamafactory.reading import with_secrets
from sepo.recipe.keys import as_flag
from sepo.redaction import redacted, secrets_of


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the recipe of a record, without secrets, or None if there is no record.

    A record that has secrets (by a version that recorded tokens) is replaced by one without.
    """
    if not path.is_file():
        return None
    written = json.loads(path.read_text(encoding="utf-8"))
    recipe = redacted(written)
    if recipe != written:
        write_record(path, recipe)
    return recipe


def write_record(path: Path, recipe: Mapping[str, Any]) -> None:
    """Record the recipe of a run, without secrets."""
    write_whole(path, json.dumps(redacted(recipe), indent=1) + "\n")


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return how two recipes differ, in words, or None if they are the same.

    Args:
        before: a recipe from ``read_record``.
        now: a recipe from ``redacted``, so that a secret that was rotated changes nothing.
    """
    changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    if not changed:
        return None
    name = changed[0]
    return f"{', '.join(changed)}: {name} was {before.get(name)!r}, now {now.get(name)!r}"


def is_resumable(recipe: Mapping[str, Any]) -> bool:
    """Return whether a run that was killed can be resumed, after removal of the checkpoints that it left incomplete.

    Args:
        recipe: keys and values of the run.
    """
    complete = False
    for folder in Path(str(recipe["output_dir"])).glob("checkpoint-*"):
        try:
            json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))  # the trainer writes it last
            complete = True
        except (OSError, ValueError):
            shutil.rmtree(folder)
    # Without the optimizer's states, a checkpoint is only a model.
    return complete and not as_flag("save_only_model", recipe.get("save_only_model") or False)


def train(
    recipe: Mapping[str, Any],
    file: Path,
    *,
    command: str = "train",
    processes: int = 1,
    environment: Mapping[str, str] = os.environ,
    log: IO[bytes] | None = None,
    on_start: Callable[[int], None] = lambda process: None,
) -> int:
    """Run a command of a recipe in a process of its own, which ends with an exception in this one.

    Args:
        recipe: keys and values of the run; its secrets are handed on by the environment.
        file: the recipe file to write, without secrets.
        command: the command of sepo.
        processes: number of processes to start; `sepo train` starts its own, as the host does.
        environment: environment of the process.
        log: where its output goes, or None for the output of this process.
        on_start: called with the id of the process.

    Returns:
        The exit status, negative after a signal.
    """
    OmegaConf.save(OmegaConf.create(redacted(recipe)), file)
    error = None if log is None else subprocess.STDOUT
    with subprocess.Popen(
        _words(file, command, processes), env=with_secrets(environment, recipe), stdout=log, stderr=error
    ) as process:
        try:
            on_start(process.pid)
            return process.wait()
        except BaseException:
            process.kill()
            raise


def command_line(recipe: Mapping[str, Any], file: Path, *, command: str = "train", processes: int = 1) -> str:
    """Return the command that starts a run alone, with a place for each secret."""
    return shlex.join([*_words(file, command, processes), *(f"{name}=..." for name in secrets_of(recipe))])


def _words(file: Path, command: str, processes: int) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [sys.executable, *(launcher if processes > 1 else ()), "-m", "sepo", command, str(file)]
