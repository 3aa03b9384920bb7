"""What the server's list of nodes costs with very many files in the model folders.

    python benchmarks/object_info.py    one line of JSON

The browser asks for it at every page load, and the choices of the loaders are in it.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))

from comfy_client import ComfyClient
from comfy_server import ComfyServer
from devhost import PACK_NAME, located

FILES = 50_000


def fill(models: Path, files: int = FILES) -> None:
    """Put so many empty files into a models folder: two fifths each into checkpoints, a hundred to a folder, and into
    pipelines of diffusers, fifty to each; the rest into diffusion_models."""
    for number in range(0, files // 5 * 2, 100):
        _fill(models / "checkpoints" / f"folder-{number // 100}", "safetensors", 100)
    for number in range(0, files // 5 * 2, 50):
        _fill(models / "diffusers" / f"pipeline-{number // 50}" / "unet", "json", 50)
    _fill(models / "diffusion_models" / "all", "safetensors", files // 5)


def _fill(folder: Path, ending: str, files: int) -> None:
    folder.mkdir(parents=True)
    for number in range(files):
        (folder / f"file-{number}.{ending}").touch()


def measure(times: int = 5) -> dict[str, Any]:
    """Seconds of /object_info with FILES files: the `first` and the median of so many `later` ones; `pack`: those of
    the pack's own nodes, asked for one by one."""
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder) / "models")
        with ComfyServer(located(), Path(folder), cpu=True) as server:
            client = ComfyClient(server.url)
            started = time.perf_counter()
            nodes = client.object_info()
            first = time.perf_counter() - started
            later = statistics.median(_seconds(client, ["/object_info"]) for _ in range(times))
            own = [f"/object_info/{name}" for name, node in nodes.items() if PACK_NAME in node["python_module"]]
            pack = statistics.median(_seconds(client, own) for _ in range(times))
    return {"files": FILES, "first": first, "later": later, "pack": pack, "nodes": len(own)}


def _seconds(client: ComfyClient, paths: list[str]) -> float:
    started = time.perf_counter()
    for path in paths:
        client.get_json(path)
    return time.perf_counter() - started


if __name__ == "__main__":
    print(json.dumps(measure()))
