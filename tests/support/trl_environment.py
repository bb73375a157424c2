"""Print the directory of the environment with TRL's own DPO, creating it if it does not exist.

    .venv/bin/python -m tests.support.trl_environment

The host pins an older TRL, so benchmarks that compare with the newest run it in a process of this environment.
"""

import sys

from tests.support.environments import environment
from tests.support.locks import LOCKS

LOCK = LOCKS / "trl-1.16.txt"
FIRST_IMPORT = "import trl.trainer.dpo_trainer, peft"

if __name__ == "__main__":
    print(environment(LOCK.stem, [LOCK], python=sys.executable, first_import=FIRST_IMPORT))
