"""A file system that is soon full, for whoever can mount one: root, or a user who may have namespaces."""

import subprocess
from pathlib import Path

import pytest


def succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


class SmallDisk:
    """A tmpfs in a folder.

    Args:
        place: where it is mounted; made here.
    """

    def __init__(self, place: Path) -> None:
        place.mkdir()
        self._place = str(place)
        self._holder: subprocess.Popen[str] | None = None
        self._inside: list[str] = []

    def mount(self, size: int) -> Path:
        """Mount it with so many KiB and return the path of its root."""
        if self._mount(f"size={size}k"):
            return Path(self._place)
        # A process in namespaces of its own, where any user may mount; files there have a path from outside, too.
        self._holder = subprocess.Popen(
            ["unshare", "--map-root-user", "--mount", "sh", "-c", "echo ready; exec sleep infinity"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        ready = self._holder.stdout.readline()
        holder = str(self._holder.pid)
        self._inside = ["nsenter", "--target", holder, "--user", "--mount", "--preserve-credentials"]
        if ready and self._mount(f"size={size}k"):
            return Path(f"/proc/{holder}/root{self._place}")
        pytest.fail("no file system can be mounted to be filled: run as root, or where users may have namespaces")

    def enlarge(self, size: int) -> bool:
        """Give it so many KiB; False where that fails."""
        return self._mount(f"remount,size={size}k")

    def close(self) -> None:
        """Unmount it."""
        if self._holder is None:
            succeeds("umount", self._place)
        else:
            self._holder.kill()
            self._holder.communicate()

    def _mount(self, options: str) -> bool:
        return succeeds(*self._inside, "mount", "-t", "tmpfs", "-o", options, "tmpfs", self._place)
