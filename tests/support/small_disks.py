"""Disks that are full, or read-only."""

from __future__ import annotations

import os
import resource
import subprocess
from pathlib import Path


class Tmpfs:
    """A disk of its own at a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def __enter__(self) -> Tmpfs:
        # Without a right to it, this says so; util-linux's mount is on every Linux.
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", self.folder], check=True, capture_output=True)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", self.folder], check=True)

    def holds(self, size: int) -> None:
        """Let it hold so many more bytes than it does, in whole pages, and one page at least."""
        there = os.statvfs(self.folder)
        used = (there.f_blocks - there.f_bfree) * there.f_frsize
        self._remount(f"rw,size={max(used + size, there.f_frsize)}")

    def closes(self) -> None:
        self._remount("ro")

    def _remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True)


class Limited:
    """An ordinary folder, in a process that may write no file longer than so many bytes: the system refuses the rest of
    one as a full disk does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def __enter__(self) -> Limited:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        return self

    def __exit__(self, *_: object) -> None:
        self.holds(1 << 30)

    def holds(self, size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size if size < 1 << 30 else self.before[0], self.before[1]))


def may_mount(folder: Path) -> bool:
    """Whether this process may mount: it is root's, and not in a container that forbids it."""
    try:
        with Tmpfs(folder):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
    finally:
        os.rmdir(folder)
