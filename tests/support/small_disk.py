"""A small file system for tests of full disks; mounting it needs root or user namespaces."""

import subprocess
from pathlib import Path

import pytest


def succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


class SmallDisk:
    """A tmpfs in a directory.

    Args:
        place: mount point, which is created.
    """

    def __init__(self, place: Path) -> None:
        place.mkdir()
        self._place = str(place)
        self._holder: subprocess.Popen[str] | None = None
        self._inside: list[str] = []

    def mount(self, size: int) -> Path:
        """Mount the file system with a size in KiB and return the path of its root."""
        if self._mount(f"size={size}k"):
            return Path(self._place)
        # In its own namespaces a process of any user may mount; the files are reachable from outside under /proc.
        self._holder = subprocess.Popen(
            ["unshare", "--map-root-user", "--mount", "sh", "-c", "echo ready; exec sleep infinity"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        ready = self._holder.stdout.readline()
        holder = str(self._holder.pid)
        self._inside = ["nsenter", "--target", holder, "--user", "--mount", "--preserve-credentials"]
        if ready and self._mount(f"size={size}k"):
            return Path(f"/proc/{holder}/root{self._place}")
        pytest.fail("no file system can be mounted: run as root, or enable user namespaces")

    def enlarge(self, size: int) -> bool:
        """Resize the file system to a size in KiB; return whether that succeeded."""
        return self._mount(f"remount,size={size}k")

    def close(self) -> None:
        """Unmount the file system."""
        if self._holder is None:
            succeeds("umount", self._place)
        else:
            self._holder.kill()
            self._holder.communicate()

    def _mount(self, options: str) -> bool:
        return succeeds(*self._inside, "mount", "-t", "tmpfs", "-o", options, "tmpfs", self._place)
