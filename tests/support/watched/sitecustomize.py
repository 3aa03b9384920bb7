"""In a program that has this folder on its PYTHONPATH: a record of the files it touches, and no way to the network.

Python's own audit events tell every open, listing and connection, by whatever library. See watched_server.py.

    WATCH_RECORD  the file to record in, a JSON list to a line: the event, and the path or address
    WATCH_FILES   folders, as in PATH: what touches them by whatever name or link is recorded
    WATCH_CLOSED  folders that nobody may list, also root
    WATCH_GONE    files that are removed when somebody is about to open them
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

_FILES = ("open", "os.", "shutil.", "glob.", "sqlite3.connect", "ctypes.dlopen", "pathlib.")
_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostby", "socket.sendto", "socket.sendmsg")


def watch() -> None:
    """Record from now on, in this process and in those it starts."""
    record = os.open(os.environ["WATCH_RECORD"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    watched, closed, gone = (_folders(f"WATCH_{name}") for name in ("FILES", "CLOSED", "GONE"))

    def write(*line: str) -> None:
        os.write(record, json.dumps(line).encode() + b"\n")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_NETWORK):
            address = _address(event, arguments)
            if address is not None:
                write(event, address)
                raise OSError(f"there is no network here: {event} {address}")
        elif event.startswith(_FILES):
            for path in _paths(arguments):
                if any(path == folder or path.startswith(folder + os.sep) for folder in watched):
                    write(event, path)
                if event in ("os.listdir", "os.scandir") and path in closed:
                    write(event, path)
                    raise PermissionError(13, "Permission denied", path)
                if event == "open" and path in gone:
                    write(event, path)
                    gone.remove(path)
                    os.unlink(path)

    sys.addaudithook(hook)


def _folders(variable: str) -> list[str]:
    return [os.path.realpath(path) for path in os.environ.get(variable, "").split(os.pathsep) if path]


def _paths(arguments: tuple[Any, ...]) -> list[str]:
    """The real paths among the arguments of an event."""
    given = [argument for argument in arguments if isinstance(argument, str | bytes | os.PathLike)]
    try:
        return [os.path.realpath(os.fsdecode(path)) for path in given]
    except ValueError:  # a NUL byte in it: no path
        return []


def _address(event: str, arguments: tuple[Any, ...]) -> str | None:
    """Where a connection or a question would go; None where that is this machine itself."""
    place = arguments[-1] if event.startswith(("socket.connect", "socket.send")) else arguments[0]
    if not isinstance(place, tuple) and event.startswith(("socket.connect", "socket.send")):
        return None  # a Unix socket's path
    name = place[0] if isinstance(place, tuple) else place
    name = name.decode() if isinstance(name, bytes) else name
    own = name in (None, "", "localhost", "::1", "0.0.0.0") or str(name).startswith("127.")
    return None if own else str(name)


if "WATCH_RECORD" in os.environ:
    watch()
