"""Commands of `sepo` with the recipes of this package, in forks of a process that has imported the host once."""

import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

RECIPES = Path(__file__).parent / "recipes"
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip
os.environ.update(ENVIRONMENT)  # before the imports that read it


class Steps:
    """The steps of one seed: commands in one directory, each of them run once.

    Args:
        folder: working directory of the commands; created if absent.
        on_step: called with the name of each step before it is run or found finished.
    """

    def __init__(self, folder: Path, on_step: Callable[[str], None] = lambda name: None):
        self.folder = folder
        self._on_step = on_step
        (folder / "steps").mkdir(parents=True, exist_ok=True)

    def run(self, name: str, command: str, recipe: str, words: Iterable[str] = (), *, output: str) -> float:
        """Run a command, or find it finished; its terminal output is in `steps/NAME.log`.

        Args:
            name: name of the step.
            command: command of `sepo`.
            recipe: name of a recipe of this package.
            words: the command line after the recipe.
            output: directory that the command writes; what an interrupted step left in it is removed.

        Returns:
            Its seconds.
        """
        self._on_step(name)
        file, record = RECIPES / f"{recipe}.yaml", self.folder / "steps" / f"{name}.json"
        request = {"command": command, "recipe": file.read_text(encoding="utf-8"), "words": list(words)}
        if record.exists():
            found = json.loads(record.read_text(encoding="utf-8"))
            if found["request"] != request:
                raise SystemExit(f"error: {record} is of another command or recipe; name another --work.")
            return found["seconds"]
        shutil.rmtree(self.folder / output, ignore_errors=True)
        log, start = record.with_suffix(".log"), time.monotonic()
        status = in_fork([command, str(file), *request["words"]], cwd=self.folder, log=log)
        if status:
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]
            raise SystemExit("\n".join([f"error: sepo {command} ended with status {status} ({log}):", *last]))
        seconds = round(time.monotonic() - start, 2)
        partial = record.with_suffix(".partial")
        partial.write_text(json.dumps({"seconds": seconds, "request": request}, indent=1) + "\n", encoding="utf-8")
        partial.replace(record)
        return seconds


def in_fork(words: Sequence[str], *, cwd: Path, log: Path) -> int:
    """Run a command in a fork of this process, without the ten seconds of importing the host; return its status."""
    from . import preload  # noqa: F401

    process = multiprocessing.get_context("fork").Process(target=_command, args=(words, cwd, log))
    process.start()
    try:
        process.join()
    except BaseException:
        process.terminate()
        process.join()
        raise
    return process.exitcode


def _command(words: Sequence[str], cwd: Path, log: Path) -> None:
    os.chdir(cwd)
    with open(log, "wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from datasets import fingerprint

    from sepo.cli import main

    fingerprint.fingerprint_rng.seed()  # or the caches of all forks would have the same names
    sys.argv = ["sepo", *words]
    sys.exit(main(words))
