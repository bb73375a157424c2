"""Programs that use the host, without the ten seconds of importing it: forks of a process that has imported it.

A child has its own command line, working directory, environment, output and exit status. Children of one test process
share the imported modules in memory and the seed of Python's hashes. If the environment differs in variables that
modules may read during import, or if a test is about the start itself (``fresh=True`` of ``recipes.run``), a new
process is started; with SEPO_TESTS_FRESH=1 always.

Processes that a program starts are new processes, too, unless ``forks`` is set: then ``sys.executable`` of the program,
and the interpreter with which a launcher starts its ranks, are ``warm_python.py``, which requests a fork instead.
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

from tests.support.warm_server import at_import

SERVER = Path(__file__).with_name("warm_server.py")
PYTHON = Path(__file__).with_name("warm_python.py")
# Commands of the environment that are Python scripts.
COMMANDS = {
    str(Path(sys.executable).with_name(name)) for name in ("sepo", "llamafactory-cli", "torchrun", "accelerate")
}


class Process:
    """A forked child with the part of the interface of ``subprocess.Popen`` that tests need."""

    def __init__(self, answers):
        self._answers = answers.makefile("r")
        answers.close()
        self.returncode = None
        first = self._answers.readline()
        if not first:
            raise RuntimeError(f"{SERVER.name} has ended; SEPO_TESTS_FRESH=1 does without it")
        self.pid = int(first)

    def poll(self):
        """Return the exit status, negative after a signal, or None while the child runs."""
        if self.returncode is None and select.select([self._answers], [], [], 0)[0]:
            self.returncode = int(self._answers.readline())
        return self.returncode

    def wait(self, timeout=None):
        """Wait for the end of the child and return its exit status."""
        if self.returncode is None and not select.select([self._answers], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return self.poll()


class Server:
    """The process that forks children; it ends with the tests."""

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
        """End the process."""
        self._channel.close()
        self._process.wait()
        self._folder.cleanup()

    def start(self, words, *, cwd, env, stdout, stderr, session, forks):
        """Start a program in a child; ``stdout`` and ``stderr`` are files, ``session`` as ``start_new_session``."""
        request = {"words": [str(word) for word in words], "cwd": str(cwd), "env": env, "session": session,
                   "python": str(self._python) if forks else None}  # fmt: skip
        own, remote = socket.socketpair()
        with remote:
            files = [remote.fileno(), stdout.fileno(), stderr.fileno()]
            socket.send_fds(self._channel, [json.dumps(request).encode()], files)
        return Process(own)


_servers: list[Server] = []


def _server(words, env):
    """Return the server that can run a command in an environment, or None."""
    words = [str(word) for word in words]
    command = words[0] in COMMANDS or words[:3] == [sys.executable, "-m", "sepo"]
    script = words[0] == sys.executable and words[1].endswith(".py")
    # A GPU's driver does not survive a fork.
    if not (command or script) or os.environ.get("SEPO_TESTS_FRESH") == "1" or Path("/dev/nvidiactl").exists():
        return None
    if not _servers:
        _servers.append(Server({**env, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}))
    (server,) = _servers
    return server if server.env == at_import(env) else None


def start(words, *, cwd, env, stdout, stderr, start_new_session=False, forks=False):
    """Start a program like ``subprocess.Popen``, in a forked child if that is equivalent."""
    server = _server(words, env)
    if server is None:
        return subprocess.Popen(
            [str(word) for word in words], cwd=cwd, env=env, stdout=stdout, stderr=stderr,
            start_new_session=start_new_session,
        )  # fmt: skip
    return server.start(words, cwd=cwd, env=env, stdout=stdout, stderr=stderr, session=start_new_session, forks=forks)


def run(words, *, cwd, env, timeout, forks=False):
    """Run a program like ``subprocess.run`` with captured text, in a forked child if that is equivalent."""
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
