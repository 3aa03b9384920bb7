"""The client that the `server` fixture gives to tests."""

from __future__ import annotations

from pathlib import Path

from comfy_client import ComfyClient, Graph, PromptResult
from comfy_server import ComfyServer


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
