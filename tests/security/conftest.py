"""A watched server between folders that are none of its business."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from devhost import DevHost
from outside_files import Outside, make_outside
from watched_server import Watch, WatchedServer, watched_process


@pytest.fixture(scope="session")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Outside:
    return make_outside(tmp_path_factory.mktemp("around"))


@pytest.fixture(scope="session")
def watched(dev_host: DevHost, outside: Outside) -> Iterator[WatchedServer]:
    """A server whose every touch of the folders around it is recorded, and every word to another machine."""
    watch = Watch(outside.base / "user" / "record", outside.folders)
    with watched_process(dev_host, outside.base, watch) as process:
        yield WatchedServer(process, watch)
