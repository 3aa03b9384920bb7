"""What every test shares: the import paths, the real host, one real server for the whole run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# The repo root comes last: our nodes/ must never shadow the host's `nodes` (`python -m pytest` puts it first).
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
sys.path += [str(ROOT / folder) for folder in ("scripts", "benchmarks", "tests/support", ".")]

from comfy_server import ComfyServer  # noqa: E402
from devhost import DevHost, located  # noqa: E402
from host_here import host, models, no_room, one_step, pack, shapes, teacher, two_rf  # noqa: E402, F401  fixtures
from running_server import RunningServer  # noqa: E402


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what this run could not hold."""
    if "COMMUNITY_PACKS" not in os.environ:
        terminalreporter.write_line(
            "Not run: tests/nodes/test_community_packs.py. The packs whose nodes patch a MODEL are on GitHub alone, in "
            "no package index; COMMUNITY_PACKS=FOLDER_OF_CLONES runs it."
        )


@pytest.fixture(scope="session")
def dev_host() -> DevHost:
    """The ComfyUI under test and its interpreter."""
    return located()


@pytest.fixture(scope="session")
def server(dev_host: DevHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A real ComfyUI server with the pack, on the CPU, on a free port and a base directory of its own."""
    with ComfyServer(dev_host, tmp_path_factory.mktemp("server"), cpu=True) as process:
        yield RunningServer(process)
