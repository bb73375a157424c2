"""Environments of other hosts and versions, made from the locks and kept outside the checkout.

They take minutes and gigabytes, so they are in `$SEPO_CACHE_DIR` or `~/.cache/sepo`, under a hash of their locks, and
clones with the same locks share them. An incomplete environment is never used: the name is a symbolic link that is
created last.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support.locks import LOCKS

BUILD = LOCKS / "build.txt"
CONTRACT = LOCKS / "contract-0.9.4.txt"
UV = [sys.executable, "-m", "uv"]


def place(name: str, locks: Sequence[Path]) -> Path:
    """Return the path of the link to what is made from some locks."""
    cache = Path(os.environ.get("SEPO_CACHE_DIR") or Path.home() / ".cache" / "sepo")
    content = b"".join(lock.read_bytes() for lock in (BUILD, *locks))
    return cache / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"


def made(link: Path, fill: Callable[[Path], None]) -> Path:
    """Return a link, after its directory is filled if it does not exist."""
    if link.exists():
        return link
    link.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{link.name}.", dir=link.parent))
    try:
        fill(folder)
        fresh = folder / "link"
        fresh.symlink_to(folder.name)
        os.replace(fresh, link)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return link


def environment(name: str, locks: Sequence[Path], *, python: str, first_import: str) -> Path:
    """Return an environment in which locks are installed one after the other.

    Args:
        name: beginning of the directory's name.
        locks: the first is complete; later ones replace single packages.
        python: the interpreter.
        first_import: statement that compiles the imported modules once, and not in every process of the tests.
    """

    def fill(folder: Path) -> None:
        its = folder / "bin" / "python"
        print(f"installing {name} into {folder} (about 7 GB, some minutes)", file=sys.stderr, flush=True)
        install = [*UV, "pip", "install", "--quiet", "--python", its, "--no-deps", "--require-hashes"]
        for command in (
            [*UV, "venv", "--quiet", "--allow-existing", "--python", python, folder],
            [*install, "-r", BUILD],
            *([*install, "--no-build-isolation", "-r", lock] for lock in locks),
            [its, "-W", "ignore", "-c", first_import],
        ):
            subprocess.run(command, check=True, env=_writing(), stdout=sys.stderr)  # stdout is for the directory only

    return made(place(name, locks), fill)


def unpacked(lock: Path) -> Path:
    """Return a directory with the packages of a lock, which nothing imports; checked against their hashes."""

    def fill(folder: Path) -> None:
        target = ["--no-deps", "--no-build", "--require-hashes", "--target", folder]
        subprocess.run([*UV, "pip", "install", "--quiet", *target, "-r", lock], check=True, stdout=sys.stderr)

    return made(place(lock.stem, [lock]), fill)


def _writing() -> dict[str, str]:
    """Return environment variables for a process that writes bytecode."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "AXOLOTL_DO_NOT_TRACK": "1"}


if __name__ == "__main__":  # for `make env`: tests then need no index
    print(unpacked(CONTRACT))
