"""A Python interpreter that is forked from ``warm_server.py``: ``warm_python.py <server> words``.

Commands that the server does not support or refuses are run by a new interpreter.
"""

import contextlib
import json
import os
import signal
import socket
import sys


def requested(address, words):
    """Send a request to the server; return the file with its replies, or None."""
    script = words[1:] if words[:1] == ["-u"] else words
    if not script or not (script[0].endswith(".py") or script[0] == "-m"):
        return None
    own, remote = socket.socketpair()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel, remote:
        channel.connect(address)
        request = {"words": [sys.executable, *words], "cwd": os.getcwd(), "env": dict(os.environ), "session": False,
                   "python": os.environ.get("PYTHON_EXEC")}  # fmt: skip
        socket.send_fds(channel, [json.dumps(request).encode()], [remote.fileno(), 1, 2])
    return own.makefile("r")


def main(address, words):
    replies = requested(address, words)
    first = replies and replies.readline()
    if not first:
        os.execv(sys.executable, [sys.executable, *words])
    child = int(first)

    def passed_on(number, _):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, passed_on)
    status = int(replies.readline())
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL's
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
