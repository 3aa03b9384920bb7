"""A real server that is watched: which files it touches outside its folders, and that it asks for no other machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

from comfy_server import ComfyServer
from devhost import DevHost
from running_server import RunningServer

_HOOK = Path(__file__).resolve().parent / "watched"


class Watch:
    """The record of a program that runs with `environment`.

    Args:
        record: the file to keep it in.
        files: folders of which every touch is recorded.
        closed: folders that raise PermissionError where they are listed, as another user's do for all but root.
        gone: files that vanish as they are about to be opened.
    """

    def __init__(
        self, record: Path, files: tuple[Path, ...] = (), closed: tuple[Path, ...] = (), gone: tuple[Path, ...] = ()
    ) -> None:
        self.record = record
        paths = os.pathsep.join(filter(None, [str(_HOOK), os.environ.get("PYTHONPATH")]))
        self.environment = {
            "PYTHONPATH": paths,
            "WATCH_RECORD": str(record),
            "WATCH_FILES": os.pathsep.join(map(str, files)),
            "WATCH_CLOSED": os.pathsep.join(map(str, closed)),
            "WATCH_GONE": os.pathsep.join(map(str, gone)),
        }

    def events(self, kind: str = "") -> list[tuple[str, str]]:
        """What was recorded so far whose event begins so, or all of it: (event, path or address)."""
        lines = self.record.read_text(encoding="utf-8").splitlines()
        found = [(event, place) for event, place in map(json.loads, lines)]
        return [(event, place) for event, place in found if event.startswith(kind)]


def watched_process(host: DevHost, base: Path, watch: Watch) -> ComfyServer:
    """The server process on `base`, recorded in `watch`; start it as any other."""
    watch.record.parent.mkdir(parents=True, exist_ok=True)
    return ComfyServer(host, base, cpu=True, environment=watch.environment)


class WatchedServer(RunningServer):
    """A client of a watched server, with the record at hand."""

    def __init__(self, process: ComfyServer, watch: Watch) -> None:
        super().__init__(process)
        self.watch = watch
