"""A picture on a GPU at Stable Diffusion 1.5's size: ours plain and accelerated, beside the official loop on diffusers.

    python3 scripts/devhost.py benchmarks/gpu.py                   on a CUDA GPU, 512 × 512, random weights
    python3 scripts/devhost.py benchmarks/gpu.py --device cpu      the same code on the CPU with the built-in model

The official loop is text encoder, UNet at t = 0, latents + v, decoder, in half precision, eager and compiled. Each
picture has another caption and another seed, and ends as bytes in memory.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))

import torch
from comfy_server import has_gpu
from devhost import PACK_NAME, ROOT, located, make_base
from host_process import load_pack, open_host, run_node
from measuring import all_in_turn, printed, rows_of
from rows import Row
from torch import Tensor

NO_GPU = "no CUDA GPU is at hand"
NAMES = ("gpu/full", "gpu/tiny", "gpu/batch16", "gpu/prompt")
EAGER = "diffusers fp16, eager"
BUILT_IN, SD15 = "built-in: shapes", "random-sd15"
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")


def caption(number: int) -> str:
    return f"a {COLOURS[number % 8]} star on a {COLOURS[(number // 8 + number + 1) % 8]} background"


def as_bytes(pictures: Tensor) -> Any:
    """Pictures in [0, 1] as bytes in the CPU's memory."""
    return pictures.clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()


class Official:
    """The authors' loop on diffusers' modules."""

    def __init__(self, checkpoint: Any, device: str, size: int, compiled: bool) -> None:
        from instaflow_core.text import encode_prompts
        from instaflow_core.weights.modules import build_text_encoder, build_unet, build_vae

        self.device, self.dtype = device, torch.float16 if device == "cuda" else torch.float32
        self.encode, self.shape = encode_prompts, checkpoint.latent_shape(size, size)
        self.text, self.unet, self.vae = (
            build(checkpoint, self.dtype).to(device) for build in (build_text_encoder, build_unet, build_vae)
        )
        self.scale = self.vae.config.scaling_factor
        self.predict, self.decode = self.unet, self.vae.decode
        if compiled:
            self.unet.to(memory_format=torch.channels_last)
            self.vae.to(memory_format=torch.channels_last)
            mode = "max-autotune-no-cudagraphs" if device == "cpu" else "reduce-overhead"
            self.predict = torch.compile(self.unet, mode=mode, fullgraph=True)
            self.decode = torch.compile(self.vae.decode, mode=mode, fullgraph=True)

    @torch.inference_mode()
    def draw(self, number: int, batch: int = 1) -> Any:
        generator = torch.Generator().manual_seed(number)
        x_0 = torch.randn(batch, *self.shape, generator=generator).to(self.device, self.dtype)
        states = self.encode(self.text, [caption(number)] * batch).to(self.dtype)
        time_asked = torch.full((batch,), 1000.0, device=self.device)
        x_1 = x_0 + self.predict(x_0, time_asked, states, return_dict=False)[0]
        return as_bytes(self.decode(x_1 / self.scale, return_dict=False)[0].float() / 2 + 0.5)


class Ours:
    """The pack's nodes in the host: text, one step, decoder."""

    def __init__(self, nodes: Any, checkpoint: str, size: int, mode: str | None = None) -> None:
        """mode: InstaFlow Accelerate's; None leaves the node out."""
        self.nodes, self.size = nodes, size
        self.model, self.clip, self.vae = self.run(
            "InstaFlowLoadCheckpoint", checkpoint=checkpoint, weight_dtype="default"
        )
        if mode:
            self.model, self.vae = self.run("InstaFlowAccelerate", model=self.model, vae=self.vae, mode=mode)

    def run(self, node: str, **inputs: Any) -> tuple[Any, ...]:
        return run_node(self.nodes, node, **inputs)

    def text(self, number: int) -> Any:
        return self.run("CLIPTextEncode", clip=self.clip, text=caption(number))[0]

    def sample(self, positive: Any, number: int, batch: int = 1) -> Any:
        (latent,) = self.run("EmptyLatentImage", width=self.size, height=self.size, batch_size=batch)
        given = {"model": self.model, "positive": positive, "latent_image": latent}
        return self.run("InstaFlowSampler", **given, seed=number, steps=1, guidance=1.0, denoise=1.0)[0]

    def decode(self, latent: Any) -> Any:
        return as_bytes(self.run("VAEDecode", vae=self.vae, samples=latent)[0])

    def draw(self, number: int, batch: int = 1) -> Any:
        return self.decode(self.sample(self.text(number), number, batch))

    def parts(self, times: int) -> dict[str, float]:
        """Median seconds of text, UNet with what is around it, and decoder, each until the device is done."""
        positive = self.text(0)
        latent = self.sample(positive, 0)
        works: dict[str, Callable[[int], Any]] = {
            "text": self.text,
            "unet": lambda number: self.sample(positive, number),
            "decode": lambda _: self.decode(latent),
        }
        return dict(zip(works, all_in_turn([self._finished(work) for work in works.values()], times), strict=True))

    def _finished(self, work: Callable[[int], Any]) -> Callable[[int], None]:
        def done(number: int) -> None:
            work(number)
            if torch.cuda.is_available():
                torch.cuda.synchronize()

        return done


class Bench:
    """One size of decoder: ours and the official loop, on one device."""

    def __init__(self, nodes: Any, checkpoint: Any, name: str, device: str, size: int, times: int) -> None:
        self.nodes, self.times = nodes, times
        self.plain = Ours(nodes, name, size)
        self.exact = Ours(nodes, name, size, "exact")
        self.fast = Ours(nodes, name, size, "compile")
        self.eager = Official(checkpoint, device, size, compiled=False)
        self.compiled = Official(checkpoint, device, size, compiled=True)

    def rows(self, name: str, batch: int = 1) -> list[Row]:
        """`name` is accelerated in the mode compile; its neighbours are the mode exact, ours as it is, and diffusers
        compiled, each beside the eager loop. Milliseconds; pictures a second for a batch."""
        racers = {
            "": self.fast,
            "/exact": self.exact,
            "/plain": self.plain,
            "/diffusers-compiled": self.compiled,
            "eager": self.eager,
        }
        seconds = all_in_turn(
            [lambda number, racer=racer: racer.draw(number, batch) for racer in racers.values()],  # type: ignore[misc]
            self.times,
        )
        taken = dict(zip(racers, seconds, strict=True))
        unit = "ms" if batch == 1 else "pictures/s"
        value = {ending: 1000 * s if batch == 1 else batch / s for ending, s in taken.items()}
        baseline = value.pop("eager")
        return [Row(name + ending, one, unit, EAGER, baseline) for ending, one in value.items()]

    def parts(self, name: str) -> list[Row]:
        """Of ours as it is and compiled: text, UNet and decoder, and what a whole picture takes beside them."""
        rows = []
        for ending, racer in (("/compile", self.fast), ("/plain", self.plain)):
            parts = racer.parts(self.times)
            began = time.perf_counter()
            for number in range(self.times):
                racer.draw(number)
            parts["rest"] = (time.perf_counter() - began) / self.times - sum(parts.values())
            rows += [Row(f"{name}{ending}/{part}", 1000 * s, "ms") for part, s in parts.items()]
        return rows


def tiny_vae(checkpoint: Any) -> Any:
    """The checkpoint with random weights of TAESD's shape for a decoder."""
    from sd15 import random_weights

    from instaflow_core.weights.matching import rows_of as layout
    from instaflow_core.weights.taesd import taesd_config

    config = taesd_config(checkpoint)
    return replace(checkpoint, vae=random_weights(layout("vae", config)), vae_config=config)


def measure_here(device: str, times: int) -> list[Row]:
    """device: "cuda", or "cpu" for the built-in model in small pictures."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        nodes = open_host(located(), base, cpu=device == "cpu")
        load_pack(nodes, base / "custom_nodes" / PACK_NAME)
        sys.path.append(str(ROOT))
        from sd15 import random_checkpoint

        from instaflow_core.weights.checkpoint import load
        from instaflow_core.weights.saving import save_folder

        if device == "cpu":
            full = tiny = load(BUILT_IN)
            names, size = (BUILT_IN, BUILT_IN), 64
        else:
            full, size = random_checkpoint(), 512
            tiny, names = tiny_vae(full), (SD15, f"{SD15}-tiny")
            for name, checkpoint in zip(names, (full, tiny), strict=True):
                save_folder(checkpoint, base / "models" / "diffusers" / name)
        rows = []
        bench = Bench(nodes, full, names[0], device, size, times)
        rows += [*bench.rows("gpu/full"), *bench.parts("gpu/full")]
        del bench  # its models, before others are made
        bench = Bench(nodes, tiny, names[1], device, size, times)
        return [*rows, *bench.rows("gpu/tiny"), *bench.rows("gpu/batch16", batch=16)]


def prompt(prompts: int, device: str) -> list[Row]:
    """From the question to the picture at the client, through the server and InstaFlow Live Preview, at this size."""
    import prompt_live
    import workflow
    from comfy_client import ComfyClient
    from comfy_server import ComfyServer

    sys.path.append(str(ROOT))
    from sd15 import random_checkpoint

    from instaflow_core.weights.saving import save_folder

    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        make_base(base)
        shutil.copytree(ROOT / "benchmarks" / "model_calls", base / "custom_nodes" / "model_calls")
        if device == "cuda":
            save_folder(tiny_vae(random_checkpoint()), base / "models" / "diffusers" / SD15)
        with ComfyServer(located(), base) as server:
            info = ComfyClient(server.url).object_info()
            graph = workflow.to_prompt(prompt_live.read(prompt_live.LIVE), info)
            if device == "cuda":
                _resize(graph, SD15, 512)
            times = asyncio.run(prompt_live.ask(server.url, {"live": graph}, prompts))["live"]
    return prompt_live.prompt_rows("gpu/prompt", times)


def _resize(graph: dict[str, Any], checkpoint: str, side: int) -> None:
    """Let a prompt draw with another checkpoint, in another size."""
    for node in graph.values():
        if "checkpoint" in node["inputs"]:
            node["inputs"]["checkpoint"] = checkpoint
        if {"width", "height"} <= node["inputs"].keys():
            node["inputs"] |= {"width": side, "height": side}


def measure() -> list[Row]:
    """In a process of its own; rows that say that they were not run where there is no CUDA GPU."""
    if not (has_gpu() and torch.cuda.is_available()):
        return [
            Row(name, None, "pictures/s" if name == "gpu/batch16" else "ms", EAGER, reason=NO_GPU) for name in NAMES
        ]
    return rows_of(__file__, "--json")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a trial with a small model")
    parser.add_argument("--times", type=int, default=30, help="pictures of each (default 30)")
    parser.add_argument("--json", action="store_true", help="one line for another program")
    options = parser.parse_args()
    rows = [*measure_here(options.device, options.times), *prompt(options.times, options.device)]
    if options.json:
        printed(rows)
    else:
        for row in rows:
            print(row.line())


if __name__ == "__main__":
    main()
