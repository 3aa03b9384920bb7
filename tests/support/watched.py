"""What a piece of code makes the process do: files opened, programs and code run, connections, memory taken."""

from __future__ import annotations

import os
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

_NEVER = (
    "ctypes.dlopen",
    "os.exec",
    "os.fork",
    "os.mkdir",
    "os.posix_spawn",
    "os.putenv",
    "os.remove",
    "os.rename",
    "os.system",
    "pickle.find_class",
    "shutil.rmtree",
    "socket.__new__",
    "socket.connect",
    "subprocess.Popen",
    "tempfile.mkdtemp",
    "tempfile.mkstemp",
    "urllib.Request",
    "webbrowser.open",
)
"""Audit events of what reading a file has no use for."""


@dataclass
class Watched:
    """What happened: forbidden events, paths that were opened for reading, and the most memory above the start."""

    events: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    memory: int = 0

    def outside(self, folder: Path) -> list[str]:
        """What was opened that lies neither in the folder nor with the interpreter and its packages."""
        ours = Path(__file__).resolve().parents[2]
        roots = [str(folder.resolve()), sys.prefix, sys.base_prefix, str(ours), "/proc", "/sys"]
        return [path for path in self.opened if not path.startswith(tuple(roots))]


_watching: list[Watched] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    seen = _watching[-1]
    if event in _NEVER:
        seen.events.append(f"{event} {arguments!r:.200}")
    elif event in ("exec", "compile"):
        name = getattr(arguments[0], "co_filename", None) if event == "exec" else arguments[1]
        if name is not None and not _is_a_files(os.fsdecode(name)) and not _importing():
            seen.events.append(f"{event} {arguments!r:.200}")
    elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        path, flags = os.path.abspath(os.fsdecode(arguments[0])), arguments[2] or 0
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not path.startswith("/proc/self/"):
            seen.events.append(f"written {path}")
        seen.opened.append(path)


def _is_a_files(name: str) -> bool:
    return os.path.isfile(name) or name.startswith("<frozen")


def _importing() -> bool:
    """Whether it is a library's own code that is run: named tuples and data classes are made so, by an import."""
    frame: FrameType | None = sys._getframe()
    while frame := frame and frame.f_back:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
    return False


sys.addaudithook(_hook)


@contextmanager
def watched(memory: bool = True) -> Iterator[Watched]:
    """Watch this process, and unless told otherwise its memory: the resident peak where the system tells it (Linux),
    else what Python takes."""
    seen, resets = Watched(), Path("/proc/self/clear_refs")
    before = 0
    if memory and resets.exists():
        resets.write_text("5")
        before = _status("VmRSS")
    elif memory:
        tracemalloc.start()
    _watching.append(seen)
    try:
        yield seen
    finally:
        _watching.pop()
        if memory and resets.exists():
            seen.memory = max(0, _status("VmHWM") - before)
        elif memory:
            seen.memory = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()


def _status(name: str) -> int:
    """A number of bytes in what Linux says of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"this system does not tell {name}")
