"""Programs over the host without the ten seconds that importing it takes: forks of a process that has done so once.

A child has its own command line, folder, environment and output, and ends with its own exit status. What children of
one test process share is what importing leaves in memory, and the seed of Python's hashes. Where the environment
differs in what modules may read when they are imported, and where a test is about the start itself (``fresh=True`` of
``recipes.run``), the process is a real one; with SEPO_TESTS_FRESH=1 all are.

Processes that a program starts are real ones, too, unless ``forks`` is set: then ``sys.executable`` of the program, and
the interpreter that a launcher starts its ranks with, are ``warm_python.py``, which asks for a fork in its place.
"""

import atexit
import json
import os
import select
import shlex
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from warm_server import at_import

SERVER = Path(__file__).with_name("warm_server.py")
PYTHON = Path(__file__).with_name("warm_python.py")
# Commands of the environment that are scripts in Python.
COMMANDS = {
    str(Path(sys.executable).with_name(name)) for name in ("sepo", "llamafactory-cli", "torchrun", "accelerate")
}


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
        self._folder = tempfile.TemporaryDirectory()
        address = Path(self._folder.name) / "server"
        self._python = Path(self._folder.name) / "python"
        words = " ".join(shlex.quote(str(word)) for word in (sys.executable, "-IS", PYTHON, address))
        self._python.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        self._python.chmod(0o700)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        own = {name: env[name] for name in ("PATH", "PYTHONPATH") if name in env}
        self._process = subprocess.Popen(
            [sys.executable, SERVER, str(theirs.fileno()), address], env={**self.env, **own}, cwd="/",
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        theirs.close()
        atexit.register(self.close)

    def close(self):
        """Let it end."""
        self._channel.close()
        self._process.wait()
        self._folder.cleanup()

    def start(self, words, *, cwd, env, stdout, stderr, session, forks):
        """Start a program in a child; ``stdout`` and ``stderr`` are files, ``session`` as ``start_new_session``."""
        asked = {"words": [str(word) for word in words], "cwd": str(cwd), "env": env, "session": session,
                 "python": str(self._python) if forks else None}  # fmt: skip
        ours, theirs = socket.socketpair()
        with theirs:
            files = [theirs.fileno(), stdout.fileno(), stderr.fileno()]
            socket.send_fds(self._channel, [json.dumps(asked).encode()], files)
        return Process(ours)


_servers: list[Server] = []


def _server(words, env):
    """The server that can run a command in an environment, or None."""
    words = [str(word) for word in words]
    ours = words[0] in COMMANDS or words[:3] == [sys.executable, "-m", "sepo"]
    script = words[0] == sys.executable and words[1].endswith(".py")
    # A GPU's driver does not survive a fork.
    if not (ours or script) or os.environ.get("SEPO_TESTS_FRESH") == "1" or Path("/dev/nvidiactl").exists():
        return None
    if not _servers:
        _servers.append(Server({**env, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}))
    (server,) = _servers
    return server if server.env == at_import(env) else None


def start(words, *, cwd, env, stdout, stderr, start_new_session=False, forks=False):
    """As ``subprocess.Popen``, in a forked child where that is the same."""
    server = _server(words, env)
    if server is None:
        return subprocess.Popen(
            [str(word) for word in words], cwd=cwd, env=env, stdout=stdout, stderr=stderr,
            start_new_session=start_new_session,
        )  # fmt: skip
    return server.start(words, cwd=cwd, env=env, stdout=stdout, stderr=stderr, session=start_new_session, forks=forks)


def run(words, *, cwd, env, timeout, forks=False):
    """As ``subprocess.run`` with captured text, in a forked child where that is the same."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = start(words, cwd=cwd, env=env, stdout=out, stderr=err, forks=forks)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, 9)
            process.wait()
            raise
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(words, process.returncode, out.read(), err.read())
