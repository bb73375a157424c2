"""A Python that is forked from ``warm_server.py``, with the command line of one: ``warm_python.py <server> words``.

What the server does not do, and what it refuses, is done by a real one.
"""

import contextlib
import json
import os
import signal
import socket
import sys


def asked_for(address, words):
    """Where the server answers, or None."""
    script = words[1:] if words[:1] == ["-u"] else words
    if not script or not (script[0].endswith(".py") or script[0] == "-m"):
        return None
    ours, theirs = socket.socketpair()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel, theirs:
        channel.connect(address)
        request = {"words": [sys.executable, *words], "cwd": os.getcwd(), "env": dict(os.environ), "session": False,
                   "python": os.environ.get("PYTHON_EXEC")}  # fmt: skip
        socket.send_fds(channel, [json.dumps(request).encode()], [theirs.fileno(), 1, 2])
    return ours.makefile("r")


def main(address, words):
    answers = asked_for(address, words)
    first = answers and answers.readline()
    if not first:
        os.execv(sys.executable, [sys.executable, *words])
    child = int(first)

    def passed_on(number, _):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, passed_on)
    status = int(answers.readline())
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL's
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
