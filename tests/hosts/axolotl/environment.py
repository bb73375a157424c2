"""Print the directory of the environment in which Axolotl's tests run, creating it if it does not exist.

    .venv/bin/python -m tests.hosts.axolotl.environment [PYTHON]

PYTHON is the interpreter of the environment (default: the one that runs this file): 3.11 gets Axolotl 0.19, 3.12 gets
0.21.

It cannot be LLaMA-Factory's: the two frameworks pin different versions of the same packages. The package itself is not
installed in it; tests find it by PYTHONPATH.
"""

import subprocess
import sys

from tests.support.environments import environment
from tests.support.locks import LOCKS

LOCK_OF = {"3.11": LOCKS / "axolotl-0.19.txt", "3.12": LOCKS / "axolotl-0.21.txt"}
FIRST_IMPORT = "import axolotl.cli.train, axolotl.core.trainers.dpo.trainer, peft"


def version_of(python: str) -> str:
    """Return the major and minor version of an interpreter."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    if version not in LOCK_OF:
        sys.exit(f"{python} is Python {version}; there is a lock of Axolotl for {' and '.join(LOCK_OF)}")
    return version


def main() -> None:
    """Print the directory."""
    python = sys.argv[1] if len(sys.argv) > 1 else sys.executable
    lock = LOCK_OF[version_of(python)]
    print(environment(lock.stem, [lock], python=python, first_import=FIRST_IMPORT))


if __name__ == "__main__":
    main()
