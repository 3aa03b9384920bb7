"""What every test shares: the import paths, the real host, one real server for the whole run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# The repo root comes last: our nodes/ must never shadow the host's `nodes` (`python -m pytest` puts it first).
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
sys.path += [str(ROOT / "scripts"), str(ROOT / "benchmarks"), str(ROOT)]

from comfy_client import ComfyClient, Graph, PromptResult  # noqa: E402
from comfy_server import ComfyServer  # noqa: E402
from devhost import DevHost, located  # noqa: E402


class RunningServer(ComfyClient):
    """A client of a server that runs, with its base directory at hand."""

    def __init__(self, process: ComfyServer) -> None:
        super().__init__(process.url)
        self.process = process

    @property
    def base(self) -> Path:
        """The server's base directory: put checkpoints under `base / "models" / ...`."""
        return self.process.base

    def run_prompt(self, graph: Graph, timeout: float = 300.0) -> PromptResult:
        """As ComfyClient's; a server that died is said with its last lines."""
        try:
            return super().run_prompt(graph, timeout)
        except OSError as error:
            if not self.process.is_running:
                raise AssertionError(f"the server died:\n{self.process.log_tail()}") from error
            raise


@pytest.fixture(scope="session")
def dev_host() -> DevHost:
    """The ComfyUI under test and its interpreter."""
    return located()


@pytest.fixture(scope="session")
def server(dev_host: DevHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A real ComfyUI server with the pack, on the CPU, on a free port and a base directory of its own."""
    with ComfyServer(dev_host, tmp_path_factory.mktemp("server"), cpu=True) as process:
        yield RunningServer(process)
