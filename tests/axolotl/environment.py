"""Print the folder of the environment in which Axolotl's tests run; make it first where it is not there.

    .venv/bin/python tests/axolotl/environment.py [PYTHON]

PYTHON is the interpreter of the environment (default: the one that runs this file): 3.11 gets Axolotl 0.19, 3.12 gets
0.21.

It cannot be LLaMA-Factory's: the two frameworks pin different versions of the same packages. It takes minutes and
gigabytes, so it lies outside the checkout, under `$SEPO_CACHE_DIR` or `~/.cache/sepo`, by a hash of its lock: a clone
with the same lock uses it again, one with another makes its own. The package itself is not in it; tests find it by
PYTHONPATH. A half-made environment is never used: the name is a link that is put in place at the end.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LOCKS = Path(__file__).parents[2] / "requirements"
LOCK_OF = {"3.11": LOCKS / "axolotl-0.19.txt", "3.12": LOCKS / "axolotl-0.21.txt"}
BUILD = LOCKS / "build.txt"
# Compiles what is used of it once, and not in every process of the tests.
FIRST_IMPORT = "import axolotl.cli.train, axolotl.core.trainers.dpo.trainer, peft"


def version_of(python: str) -> str:
    """Major and minor version of an interpreter."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    if version not in LOCK_OF:
        sys.exit(f"{python} is Python {version}; there is a lock of Axolotl for {' and '.join(LOCK_OF)}")
    return version


def place(lock: Path) -> Path:
    """Where the link to the environment of a lock lies."""
    cache = Path(os.environ.get("SEPO_CACHE_DIR") or Path.home() / ".cache" / "sepo")
    return cache / f"{lock.stem}-{hashlib.sha256(BUILD.read_bytes() + lock.read_bytes()).hexdigest()[:12]}"


def _writing() -> dict[str, str]:
    """The environment's variables, for a process that keeps what it compiles."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "AXOLOTL_DO_NOT_TRACK": "1"}


def make(link: Path, lock: Path, python: str) -> None:
    """Install a lock into a new folder beside the link, then point the link at it."""
    link.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{link.name}.", dir=link.parent))
    its = folder / "bin" / "python"
    try:
        print(f"installing Axolotl into {folder} (about 7 GB, some minutes)", file=sys.stderr, flush=True)
        uv = [sys.executable, "-m", "uv"]
        install = [*uv, "pip", "install", "--quiet", "--python", its, "--no-deps", "--require-hashes"]
        for command in (
            [*uv, "venv", "--quiet", "--allow-existing", "--python", python, folder],
            [*install, "-r", BUILD],
            [*install, "--no-build-isolation", "-r", lock],
            [its, "-W", "ignore", "-c", FIRST_IMPORT],
        ):
            subprocess.run(command, check=True, env=_writing(), stdout=sys.stderr)  # stdout is the folder alone
        fresh = folder / "link"
        fresh.symlink_to(folder.name)
        os.replace(fresh, link)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def main() -> None:
    """Print the folder."""
    python = sys.argv[1] if len(sys.argv) > 1 else sys.executable
    lock = LOCK_OF[version_of(python)]
    link = place(lock)
    if not (link / "bin" / "python").exists():
        make(link, lock, python)
    print(link)


if __name__ == "__main__":
    main()
