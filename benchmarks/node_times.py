"""What the pack's sampler and loader take beside the host's own, on the same weights, in one process, in turn.

    python benchmarks/node_times.py sampler load    measured once, in this process; one line of JSON

The weights of Stable Diffusion 1.5's size are random: they take as long as learned ones.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))

from devhost import PACK_NAME, ROOT, located
from host_process import load_pack, open_host, run_node
from measuring import in_turn, peak_of, printed, rows_of
from rows import Row

SD15 = "random-sd15"


class Host:
    """The host in this process, with the pack and a checkpoint of Stable Diffusion 1.5's size as a folder.

    file: whether it is there as a single file, too.
    """

    def __init__(self, base: Path, file: bool) -> None:
        self.nodes: ModuleType = open_host(located(), base)
        load_pack(self.nodes, base / "custom_nodes" / PACK_NAME)
        sys.path.append(str(ROOT))
        from sd15 import random_checkpoint

        from instaflow_core.weights.conversion import convert
        from instaflow_core.weights.saving import save_folder

        self.models = base / "models"
        folder = self.models / "diffusers" / SD15
        save_folder(random_checkpoint(), folder)
        if file:
            convert(folder, self.models / "checkpoints" / f"{SD15}.safetensors")

    def run(self, node: str, **inputs: Any) -> tuple[Any, ...]:
        """As `run_node`."""
        return run_node(self.nodes, node, **inputs)


def sampler(host: Host, name: str, checkpoint: str, times: int) -> Row:
    """One step of the node and of KSampler, in turn, with as many seeds: the medians in milliseconds."""
    model, clip, _ = host.run("InstaFlowLoadCheckpoint", checkpoint=checkpoint, weight_dtype="default")
    (positive,) = host.run("CLIPTextEncode", clip=clip, text="a yellow star on a purple background")
    (latent,) = host.run("EmptyLatentImage", width=64, height=64, batch_size=1)
    given = {"model": model, "positive": positive, "latent_image": latent}
    stock = {"cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "negative": positive}

    def ours(seed: int) -> None:
        host.run("InstaFlowSampler", **given, seed=seed, steps=1, guidance=1.0, denoise=1.0)

    def theirs(seed: int) -> None:
        host.run("KSampler", **given, **stock, seed=seed, steps=1, denoise=1.0)

    value, baseline = in_turn(ours, theirs, times)
    return Row(f"sampler/{name}", 1000 * value, "ms", "KSampler", 1000 * baseline)


def loading(host: Host, name: str, times: int) -> list[Row]:
    """The loader and the host's own for what is `name`, "folder" or "file", in turn: seconds, and the memory that is
    resident at most while it loads; and seconds of the first load, for which the loader takes files with a new date."""
    stock = {
        "folder": ("DiffusersLoader", {"model_path": SD15}),
        "file": ("CheckpointLoaderSimple", {"ckpt_name": f"{SD15}.safetensors"}),
    }
    checkpoint = {"folder": SD15, "file": f"{SD15}.safetensors"}[name]
    node, inputs = stock[name]
    peaks: dict[str, list[float]] = {"ours": [], "theirs": []}

    def ours(_: int) -> None:
        peaks["ours"].append(
            peak_of(lambda: host.run("InstaFlowLoadCheckpoint", checkpoint=checkpoint, weight_dtype="default"))
        )

    def theirs(_: int) -> None:
        peaks["theirs"].append(peak_of(lambda: host.run(node, **inputs)))

    def ours_first(number: int) -> None:
        for path in host.models.rglob("*.safetensors"):
            os.utime(path, (number, number))
        ours(number)

    # What one load left behind is not the next one's to clear away.
    value, baseline = in_turn(ours, theirs, times, gc.collect)
    memory = [statistics.median(peaks[which]) for which in ("ours", "theirs")]
    first, first_baseline = in_turn(ours_first, theirs, times, gc.collect)
    return [
        Row(f"load/{name}", value, "s", node, baseline),
        Row(f"load/{name}/memory", memory[0], "GB", node, memory[1]),
        Row(f"load/{name}/first", first, "s", node, first_baseline),
    ]


def measure_here(parts: list[str]) -> list[Row]:
    """parts: of "sampler" and "load"."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        host = Host(Path(folder), file="load" in parts)
        if "sampler" in parts:
            rows += [sampler(host, "builtin", "built-in: shapes", 300), sampler(host, "sd15", SD15, 15)]
        if "load" in parts:
            rows += [*loading(host, "folder", 15), *loading(host, "file", 15)]
    return rows


def measure(*parts: str) -> list[Row]:
    """As `measure_here`, in a process of its own."""
    return rows_of(__file__, *parts)


if __name__ == "__main__":
    printed(measure_here(sys.argv[1:]))
