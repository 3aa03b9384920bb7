"""A tiny decoder beside the full one it stands for: what it takes, and how near its pictures are.

    python benchmarks/decoder.py    prints both

The time is of Stable Diffusion 1.5's decoder at 512 x 512, with random weights, which take as long as learned ones. The
pictures are of the built-in domain, whose decoder a tiny one is distilled from for some minutes: `distill-decoder`, on
latents of rendered pictures. LPIPS is a row where its weights are on this machine.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))

import torch
from devhost import ROOT
from rows import Row

# Last on the path: our nodes/ would shadow a host's module of that name.
sys.path.append(str(ROOT))

from sd15 import UNET, VAE, random_weights

from instaflow_core.evaluation.decoders import decode_times, measure_tiny
from instaflow_core.evaluation.figures import Figure
from instaflow_core.pictures.sources import Folder
from instaflow_core.shapes.captions import sample_captions
from instaflow_core.shapes.render import render, sample_scene
from instaflow_core.training.config import LoopConfig
from instaflow_core.training.decoder import DecoderConfig, distill_decoder
from instaflow_core.training.tiny import FullVAE, Tiny
from instaflow_core.weights.checkpoint import Checkpoint, load
from instaflow_core.weights.matching import rows_of
from instaflow_core.weights.taesd import taesd_config

PICTURES, ITERATIONS, BATCH = 2048, 600, 8


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def times() -> Row:
    """Milliseconds of both decoders at Stable Diffusion 1.5's size, in turn."""
    checkpoint = Checkpoint({}, UNET, vae=random_weights(rows_of("vae", VAE)), vae_config=VAE)
    tiny, full = Tiny(taesd_config(checkpoint), 0, encoder=False), FullVAE(checkpoint)
    latents = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    taken = decode_times(tiny, full, [latents], device())
    name = "the full decoder, 512 x 512, fp32"
    return Row("decoder/tiny", taken["milliseconds"].value, "ms", name, taken["milliseconds_full"].value)


def nearness(iterations: int = ITERATIONS) -> list[Row]:
    """What a decoder distilled on the built-in domain is worth after so many iterations."""
    checkpoint, rng = load("built-in: shapes"), random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        for number, caption in enumerate(sample_captions(PICTURES, 0)):
            render(sample_scene(caption, rng)).save(folder / "pictures" / f"{number:05}.png")
        loop = LoopConfig(iterations, learning_rate=1e-3, warmup=iterations // 10, schedule="cosine", ema=0.99)
        config = DecoderConfig(loop, batch_size=BATCH, encoder=False)
        made = distill_decoder(
            checkpoint, config, folder / "x_decoder.safetensors", pictures=Folder(folder / "pictures"), device=device()
        )
        figures = measure_tiny(made.tiny, made.full, made.held_out, device())
    units = {"psnr": "dB", "lpips": ""}
    found = {metric: figures[metric] for metric in units}
    return [
        Row(f"decoder/tiny/{metric}", figure.value, units[metric])
        for metric, figure in found.items()
        if isinstance(figure, Figure)
    ]


def measure() -> list[Row]:
    return [times(), *nearness()]


if __name__ == "__main__":
    for row in measure():
        print(row.line(), flush=True)
