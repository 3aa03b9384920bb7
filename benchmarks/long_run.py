"""Whether a server grows while it works: hundreds of prompts whose models change, and the memory after each fiftieth.

    python3 scripts/devhost.py benchmarks/long_run.py --prompts 500

Prints the server's resident memory and writes build/long_run.json. What a host's own nodes cost is in the numbers, too;
`--stock` runs as many prompts of those alone, to compare with.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))

import psutil
from comfy_client import ComfyClient, Graph
from comfy_server import ComfyServer
from devhost import ROOT, located

CAPTIONS = ("a red circle on a blue background", "a small green star on a white background")
FLOW, FEW_STEPS, TEACHER = "built-in: shapes", "built-in: shapes-2rf", "built-in: shapes-teacher"
PERIOD = 10
"""Prompts until the kind of prompt, its caption and its batch size have come round together."""


def graph(number: int, stock: bool = False) -> Graph:
    """The prompt of this number: one of several that change the MODEL, each time by another strength, seed and caption.

    stock: only what the host's own nodes do with the diffusion model, loaded by ours.
    """
    made = _Prompt(number)
    kinds = [made.diffusion] if stock else [made.flow, made.merged, made.inverted, made.diffusion, made.steered]
    latent = kinds[number % len(kinds)]()
    picture = made.add("VAEDecode", samples=latent, vae=made.vae)
    made.add("PreviewImage", images=picture)
    return made.nodes


class _Prompt:
    """A prompt in the making. An output of a node is [its id, the output's number]."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.nodes: Graph = {}
        self.vae: Any = None

    def add(self, kind: str, **inputs: Any) -> list[Any]:
        name = str(len(self.nodes) + 1)
        self.nodes[name] = {"class_type": kind, "inputs": inputs}
        return [name, 0]

    def load(self, checkpoint: str) -> tuple[Any, dict[str, Any]]:
        """The checkpoint's MODEL; a caption and the empty latent for it."""
        model = self.add("InstaFlowLoadCheckpoint", checkpoint=checkpoint, weight_dtype="fp32")
        self.vae = [model[0], 2]
        other = self.number % PERIOD // 5
        positive = self.add("CLIPTextEncode", clip=[model[0], 1], text=CAPTIONS[other])
        latent = self.add("EmptyLatentImage", width=64, height=64, batch_size=1 + other)
        return model, {"positive": positive, "latent_image": latent}

    def sampled(self, model: Any, inputs: dict[str, Any], **settings: Any) -> list[Any]:
        settings = {"seed": self.number, "steps": 1, "guidance": 1.0, "denoise": 1.0} | settings
        return self.add("InstaFlowSampler", model=model, **inputs, **settings)

    def flow(self) -> list[Any]:
        return self.sampled(*self.load(FLOW))

    def diffusion(self) -> list[Any]:
        model, inputs = self.load(TEACHER)
        settings = {"sampler_name": "euler", "scheduler": "normal", "cfg": 3.0, "steps": 2, "denoise": 1.0}
        return self.add("KSampler", model=model, negative=inputs["positive"], seed=self.number, **inputs, **settings)

    def merged(self) -> list[Any]:
        """Weights patched by another strength each time, through a flow of several steps."""
        model, inputs = self.load(FEW_STEPS)
        finetuned, base = (
            self.add("InstaFlowLoadCheckpoint", checkpoint=name, weight_dtype="fp32") for name in (FLOW, FEW_STEPS)
        )
        strength = 0.1 + self.number % 7 / 10
        patched = self.add("InstaFlowMergeDelta", model=model, finetuned=finetuned, base=base, strength=strength)
        return self.sampled(patched, inputs | {"negative": inputs["positive"]}, steps=2, guidance=1.5)

    def inverted(self) -> list[Any]:
        """A picture, its noise, and the picture again by another MODEL of the same weights."""
        model, inputs = self.load(FLOW)
        picture = self.sampled(model, inputs)
        noise = self.add("InstaFlowInvert", model=model, steps=1, **inputs | {"latent_image": picture})
        patched = self.add("InstaFlowModelSampling", model=model)
        return self.sampled(patched, inputs | {"latent_image": [noise[0], 1], "noise": noise})

    def steered(self) -> list[Any]:
        """Gradients through the MODEL, and its straightness."""
        model, inputs = self.load(FLOW)
        self.add("PreviewImage", images=self.straightness(model, inputs))
        target = self.sampled(model, inputs, seed=self.number + 1)
        steps = {"iterations": 1, "learning_rate": 0.1, "steps": 1}
        return self.add("InstaFlowControl", model=model, target=target, **inputs, **steps)

    def straightness(self, model: Any, inputs: dict[str, Any]) -> list[Any]:
        settings = {"seed": self.number, "samples": 1, "steps": 2}
        return [self.add("InstaFlowStraightness", model=model, **inputs, **settings)[0], 1]


def measure(prompts: int, every: int, stock: bool = False) -> dict[int, int]:
    """Run the prompts in a server on the CPU; its resident memory in bytes after each `every` of them."""
    memory = {}
    with tempfile.TemporaryDirectory() as base, ComfyServer(located(), Path(base), cpu=True) as server:
        client, process = ComfyClient(server.url), psutil.Process(server.pid)
        for number in range(prompts):
            client.run_prompt(graph(number, stock))
            if (number + 1) % every == 0:
                memory[number + 1] = process.memory_info().rss
                print(f"{number + 1:6} prompts {memory[number + 1] / 2**20:8.0f} MiB", flush=True)
    return memory


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=500, help="how many (default: 500)")
    parser.add_argument("--every", type=int, default=50, help="measure after each so many (default: 50)")
    parser.add_argument("--stock", action="store_true", help="the host's own nodes alone")
    args = parser.parse_args()
    memory = measure(args.prompts, args.every, args.stock)
    result = ROOT / "build" / "long_run.json"
    result.parent.mkdir(exist_ok=True)
    result.write_text(json.dumps({"prompts": args.prompts, "stock": args.stock, "rss": memory}, indent=2) + "\n")
    print(result.relative_to(ROOT))


if __name__ == "__main__":
    main()
