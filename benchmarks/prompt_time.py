"""How long the first workflow takes in a real server: the first prompt, which loads the model, and later ones."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))

import workflow
from comfy_client import ComfyClient
from comfy_server import ComfyServer
from demo import load_workflow
from devhost import located


def measure(prompts: int = 20) -> dict[str, Any]:
    """Start a server, run the first workflow with `prompts` seeds, and return seconds.

    Returns:
        `server_start`, `first_prompt` (it loads the model), and `prompt`, the median of the others.
    """
    with tempfile.TemporaryDirectory() as base:
        started = time.perf_counter()
        with ComfyServer(located(), Path(base)) as server:
            server_start = time.perf_counter() - started
            client = ComfyClient(server.url)
            graph = workflow.to_prompt(load_workflow(), client.object_info())
            seconds = []
            for seed in range(prompts):
                workflow.set_seed(graph, seed)
                seconds.append(client.run_prompt(graph).seconds)
    return {"server_start": server_start, "first_prompt": seconds[0], "prompt": statistics.median(seconds[1:])}
