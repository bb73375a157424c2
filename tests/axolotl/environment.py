"""Print the folder of the environment in which Axolotl's tests run; make it first where it is not there.

    python tests/axolotl/environment.py

It cannot be LLaMA-Factory's: the two frameworks pin different versions of the same packages. It takes minutes and
gigabytes, so it lies outside the checkout, under `$SEPO_CACHE_DIR` or `~/.cache/sepo`, by a hash of what is installed:
a clone with the same requirements uses it again, one with others makes its own. The package itself is not in it; tests
find it by PYTHONPATH. A half-made environment is never used: the name is a link that is put in place at the end.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Compiles what is used of it once, and not in every process of the tests.
FIRST_IMPORT = "import axolotl.cli.train, axolotl.core.trainers.dpo.trainer, peft"
TOOLS = ("pytest", "pytest-xdist", "hypothesis")


def requirements() -> list[str]:
    """What is installed: the extra `axolotl`, and of the extra `dev` what its tests need."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return [*extras["axolotl"], *(line for line in extras["dev"] if line.split(">")[0] in TOOLS)]


def place() -> Path:
    """Where the link to the environment lies."""
    cache = Path(os.environ.get("SEPO_CACHE_DIR") or Path.home() / ".cache" / "sepo")
    what = json.dumps([*sorted(requirements()), *sys.version_info[:2]])
    return cache / f"axolotl-{hashlib.sha256(what.encode()).hexdigest()[:12]}"


def _writing() -> dict[str, str]:
    """The environment's variables, for a process that keeps what it compiles."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "AXOLOTL_DO_NOT_TRACK": "1"}


def make(link: Path) -> None:
    """Install into a new folder beside the link, then point the link at it."""
    link.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{link.name}.", dir=link.parent))
    try:
        print(f"installing Axolotl into {folder} (about 4 GB, some minutes)", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-compile"]
        for words in (["--upgrade", "pip"], requirements()):
            subprocess.run([*pip, *words], check=True, stdout=sys.stderr, stderr=subprocess.STDOUT)
        first = [folder / "bin" / "python", "-W", "ignore", "-c", FIRST_IMPORT]
        subprocess.run(first, check=True, env=_writing(), stdout=sys.stderr)  # stdout is the folder alone
        fresh = folder / "link"
        fresh.symlink_to(folder.name)
        os.replace(fresh, link)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def main() -> None:
    """Print the folder."""
    link = place()
    if not (link / "bin" / "python").exists():
        make(link)
    print(link)


if __name__ == "__main__":
    main()
