"""The end of a process that imports a host."""

import os
import subprocess
import sys

PROGRAM = """
import atexit, sys
from sepo.cli.ending import QuickEnd

ending = QuickEnd()

class Module:
    def __del__(self):
        print("torn down")

module = Module()
atexit.register(print, "left")
print("printed")
ending.status = {status}
sys.exit(3)
"""


def ended(status):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(status=status)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout.split("\n")


def test_output_is_written_exit_functions_run_and_nothing_is_torn_down():
    assert ended(None) == (3, ["printed", "left", "torn down", ""])
    assert ended(3) == (3, ["printed", "left", ""])


def test_output_that_cannot_be_written_is_left_to_the_interpreter():
    code = "from sepo.cli.ending import QuickEnd; QuickEnd().status = 0; print('x')"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=env
        )
    assert done.returncode == 120
    assert "No space left on device" in done.stderr
