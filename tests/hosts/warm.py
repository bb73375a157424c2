"""Programs over the host without the ten seconds that importing it takes: forks of a process that has done so once.

A child has its own command line, folder, environment and output, and ends with its own exit status. What children of
one test process share is what importing leaves in memory, and the seed of Python's hashes. Where the environment
differs in what modules may read when they are imported, and where a test is about the start itself (``fresh=True`` of
``recipes.run``), the process is a real one; with SEPO_TESTS_FRESH=1 all are.
"""

import atexit
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

SERVER = Path(__file__).with_name("warm_server.py")
SEPO = str(Path(sys.executable).with_name("sepo"))
# Read when a run begins, not when a module is imported; DS_ACCELERATOR is DeepSpeed's, which the server leaves out.
READ_LATER = {
    "RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "FORCE_TORCHRUN", "NPROC_PER_NODE", "DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "COLUMNS", "PATH", "PWD", "OLDPWD",
    "PYTEST_CURRENT_TEST",
}  # fmt: skip


def at_import(env):
    """The part of an environment that a module may read when it is imported."""
    return {name: value for name, value in env.items() if name not in READ_LATER}


class Process:
    """A forked child, as far as tests need ``subprocess.Popen`` of it."""

    def __init__(self, answers):
        self._answers = answers.makefile("r")
        answers.close()
        self.returncode = None
        first = self._answers.readline()
        if not first:
            raise RuntimeError(f"{SERVER.name} has ended; SEPO_TESTS_FRESH=1 does without it")
        self.pid = int(first)

    def poll(self):
        """The exit status, negative where a signal ended it, or None while it runs."""
        if self.returncode is None and select.select([self._answers], [], [], 0)[0]:
            self.returncode = int(self._answers.readline())
        return self.returncode

    def wait(self, timeout=None):
        """The exit status, when it has ended."""
        if self.returncode is None and not select.select([self._answers], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return self.poll()


class Server:
    """The process that forks; it ends when the tests do."""

    def __init__(self, env):
        self.env = at_import(env)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, SERVER, str(theirs.fileno())], env={**self.env, "PATH": env["PATH"]}, cwd="/",
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        theirs.close()
        atexit.register(self.close)

    def close(self):
        """Let it end."""
        self._channel.close()
        self._process.wait()

    def start(self, words, *, cwd, env, stdout, stderr, session):
        """Start a program in a child; ``stdout`` and ``stderr`` are files, ``session`` as ``start_new_session``."""
        asked = {"words": [str(word) for word in words], "cwd": str(cwd), "env": env, "session": session}
        ours, theirs = socket.socketpair()
        with theirs:
            files = [theirs.fileno(), stdout.fileno(), stderr.fileno()]
            socket.send_fds(self._channel, [json.dumps(asked).encode()], files)
        return Process(ours)


_servers: list[Server] = []


def _server(words, env):
    """The server that can run a command in an environment, or None."""
    words = [str(word) for word in words]
    ours = words[0] == SEPO or words[:3] == [sys.executable, "-m", "sepo"]
    script = words[0] == sys.executable and words[1].endswith(".py")
    # A GPU's driver does not survive a fork.
    if not (ours or script) or os.environ.get("SEPO_TESTS_FRESH") == "1" or Path("/dev/nvidiactl").exists():
        return None
    if not _servers:
        _servers.append(Server(env))
    (server,) = _servers
    return server if server.env == at_import(env) else None


def start(words, *, cwd, env, stdout, stderr, start_new_session=False):
    """As ``subprocess.Popen``, in a forked child where that is the same."""
    server = _server(words, env)
    if server is None:
        return subprocess.Popen(
            [str(word) for word in words], cwd=cwd, env=env, stdout=stdout, stderr=stderr,
            start_new_session=start_new_session,
        )  # fmt: skip
    return server.start(words, cwd=cwd, env=env, stdout=stdout, stderr=stderr, session=start_new_session)


def run(words, *, cwd, env, timeout):
    """As ``subprocess.run`` with captured text, in a forked child where that is the same."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = start(words, cwd=cwd, env=env, stdout=out, stderr=err)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, 9)
            process.wait()
            raise
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(words, process.returncode, out.read(), err.read())
