"""Print the directory of the environment in which Axolotl's tests run, creating it if it does not exist.

    .venv/bin/python -m tests.hosts.axolotl.environment [PYTHON]

PYTHON is the interpreter of the environment (default: the one that runs this file): 3.11 gets Axolotl 0.19, 3.12 gets
0.21.

It cannot be LLaMA-Factory's: the two frameworks pin different versions of the same packages. It takes minutes and
gigabytes, so it is outside the checkout, in `$SEPO_CACHE_DIR` or `~/.cache/sepo`, under a hash of its lock: clones with
the same lock share it. The package itself is not installed in it; tests find it by PYTHONPATH. An incomplete
environment is never used: the name is a symbolic link that is created last.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LOCKS = Path(__file__).parents[3] / "requirements"
LOCK_OF = {"3.11": LOCKS / "axolotl-0.19.txt", "3.12": LOCKS / "axolotl-0.21.txt"}
BUILD = LOCKS / "build.txt"
# Compiles the imported modules once, and not in every process of the tests.
FIRST_IMPORT = "import axolotl.cli.train, axolotl.core.trainers.dpo.trainer, peft"


def version_of(python: str) -> str:
    """Return the major and minor version of an interpreter."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    if version not in LOCK_OF:
        sys.exit(f"{python} is Python {version}; there is a lock of Axolotl for {' and '.join(LOCK_OF)}")
    return version


def place(lock: Path) -> Path:
    """Return the path of the link to the environment of a lock."""
    cache = Path(os.environ.get("SEPO_CACHE_DIR") or Path.home() / ".cache" / "sepo")
    return cache / f"{lock.stem}-{hashlib.sha256(BUILD.read_bytes() + lock.read_bytes()).hexdigest()[:12]}"


def _writing() -> dict[str, str]:
    """Return environment variables for a process that writes bytecode."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "AXOLOTL_DO_NOT_TRACK": "1"}


def make(link: Path, lock: Path, python: str) -> None:
    """Install a lock into a new directory next to the link, then point the link to it."""
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
            subprocess.run(command, check=True, env=_writing(), stdout=sys.stderr)  # stdout is for the directory only
        fresh = folder / "link"
        fresh.symlink_to(folder.name)
        os.replace(fresh, link)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def main() -> None:
    """Print the directory."""
    python = sys.argv[1] if len(sys.argv) > 1 else sys.executable
    lock = LOCK_OF[version_of(python)]
    link = place(lock)
    if not (link / "bin" / "python").exists():
        make(link, lock, python)
    print(link)


if __name__ == "__main__":
    main()
