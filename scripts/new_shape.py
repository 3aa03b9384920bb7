"""docs/one-step-finetunes.md, what in it is not a command of this pack: a teacher learns a shape that no built-in model
has drawn, and the captions with it and without it are counted. The host takes no part.

python scripts/new_shape.py teach --out FOLDER   teacher.safetensors; new.txt and old.txt, captions with the shape
                                                 and without; goes on where it was stopped
python scripts/new_shape.py judge CHECKPOINT...  a line each: shares of captions drawn right
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from instaflow_core.atomic import replacing  # noqa: E402
from instaflow_core.evaluation.drawing import Drawing  # noqa: E402
from instaflow_core.evaluation.pictures import pixels  # noqa: E402
from instaflow_core.flow.diffusion import diffusion_loss, noise_schedule  # noqa: E402
from instaflow_core.flow.noise import indexed_generator  # noqa: E402
from instaflow_core.pictures.images import contact_sheet  # noqa: E402
from instaflow_core.shapes.captions import SHAPES, Caption, sample_captions  # noqa: E402
from instaflow_core.shapes.evaluate import accuracy, draw_pictures  # noqa: E402
from instaflow_core.shapes.render import OUTLINES, render, sample_scene  # noqa: E402
from instaflow_core.text import encode_prompts  # noqa: E402
from instaflow_core.training.batches import BatchPart, PromptStates  # noqa: E402
from instaflow_core.training.config import LoopConfig  # noqa: E402
from instaflow_core.training.loop import fit  # noqa: E402
from instaflow_core.training.watching import LossLines  # noqa: E402
from instaflow_core.weights.checkpoint import Checkpoint, load  # noqa: E402
from instaflow_core.weights.modules import build_text_encoder, build_unet, build_vae  # noqa: E402
from instaflow_core.weights.saving import save  # noqa: E402

NAME = "arrow"
ARROW = [(0.0, -1.0), (1.0, 0.0), (0.4, 0.0), (0.4, 1.0), (-0.4, 1.0), (-0.4, 0.0), (-1.0, 0.0)]
"""It points up. The text encoder has never read the word, and the autoencoder never seen the shape."""
PICTURES, PROMPTS, BATCH, DROPPED, SEED = 1024, 2048, 32, 0.1, 21
"""Pictures, half of them of the new shape; prompts of each kind; and the share of a batch without its caption, as the
teacher's had."""
LEARNING = LoopConfig(300, 6e-4, 30, "cosine", 0.0, 0.98, checkpoint_minutes=1)
_SAMPLES = 8


def captions(count: int, seed: int) -> list[Caption]:
    """Captions of the new shape and of the old ones in turn."""
    new = sample_captions(count - count // 2, seed, shapes=(NAME,))
    old = sample_captions(count // 2, seed)
    return [(new if i % 2 == 0 else old)[i // 2] for i in range(count)]


def teach(folder: Path, learning: LoopConfig, count: int) -> Path:
    """Finetune the built-in teacher on pictures of both, as Stable Diffusion is; the path of what comes of it."""
    path = folder / "teacher.safetensors"
    for name, prompts in (
        ("new", sample_captions(PROMPTS, SEED, shapes=(NAME,))),
        ("old", sample_captions(PROMPTS, SEED)),
    ):
        with replacing(folder / f"{name}.txt") as temporary:
            temporary.write_text("".join(f"{caption}\n" for caption in prompts), encoding="utf-8")
    if path.exists():
        return path
    init = load("built-in: shapes-teacher")
    unet = build_unet(init).requires_grad_(True)
    schedule = noise_schedule()
    fit(
        unet,
        _batches(init, count),
        lambda model, batch: diffusion_loss(model, schedule, *batch),
        learning,
        folder / "teacher.training",
        resume=True,
        progress=LossLines("teacher", learning.iterations),
        device="cpu",
    )
    training = json.dumps({"from": "built-in: shapes-teacher", "data": f"{count} pictures, half of an {NAME}"})
    said = init.metadata | {"modelspec.title": f"InstaFlow shapes: teacher of the {NAME}"}
    save(replace(init, unet=unet.state_dict(), metadata=said | {"instaflow.training": training}), path)
    return path


def _batches(init: Checkpoint, count: int) -> Callable[[int, BatchPart], tuple[Tensor, ...]]:
    """(Step, part) -> latents, noise, timesteps and text states of so many pictures."""
    shown, rng, encoder = captions(count, SEED + 1), random.Random(SEED), build_text_encoder(init)
    states, empty, latents = PromptStates(encoder), encode_prompts(encoder, [""]), list[Tensor]()
    vae = build_vae(init)
    for first in range(0, count, BATCH):
        drawn = pixels([render(sample_scene(caption, rng)) for caption in shown[first : first + BATCH]])
        with torch.no_grad():
            latents.append(vae.encode(drawn.float() / 127.5 - 1).latents)
    data = torch.cat(latents)

    def batch(step: int, part: BatchPart) -> tuple[Tensor, ...]:
        generator, rows = indexed_generator(SEED, step), part.rows(BATCH)
        index = torch.randint(count, (BATCH,), generator=generator)[rows]
        timesteps = torch.randint(1000, (BATCH,), generator=generator)[rows]
        noise = torch.randn(BATCH, *data.shape[1:], generator=generator)[rows]
        dropped = (torch.rand(BATCH, 1, 1, generator=generator) < DROPPED)[rows]
        texts = torch.where(dropped, empty, states([str(shown[i]) for i in index.tolist()]))
        return data[index], noise, timesteps, texts

    return batch


def judge(checkpoint: str, steps: int, guidance: float | None, count: int) -> tuple[list[float], Any]:
    """The shares of captions drawn right, and some of the pictures: old captions of the training part and held-out
    ones, then the new shape's."""
    loaded = load(checkpoint)
    drawing, shares, samples = Drawing(loaded), list[float](), list[Any]()
    for shapes in (SHAPES, (NAME,)):
        for held_out in (False, True):
            said = sample_captions(count, SEED + 2, held_out, shapes=shapes)
            drawn = draw_pictures(drawing, said, SEED, steps, loaded.guidance if guidance is None else guidance)
            shares.append(accuracy(drawn, said))
            samples += drawn[:_SAMPLES]
    return shares, contact_sheet(samples, 2 * _SAMPLES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    teaching = commands.add_parser("teach")
    teaching.add_argument("--out", type=Path, required=True)
    judging = commands.add_parser("judge")
    judging.add_argument("checkpoint", nargs="+")
    judging.add_argument("--steps", type=int, default=1)
    judging.add_argument("--guidance", type=float)
    judging.add_argument("--count", type=int, default=400, help="captions of each of the four parts")
    judging.add_argument("--grid", type=Path, help="a picture of a line of pictures for each")
    options = parser.parse_args()
    OUTLINES[NAME] = lambda: ARROW
    if options.command == "teach":
        print(teach(options.out, LEARNING, PICTURES))
        return
    print(f"{'checkpoint':40}" + "".join(f"{name:>14}" for name in ("old", "old held out", "new", "new held out")))
    grids = []
    for name in options.checkpoint:
        shares, grid = judge(name, options.steps, options.guidance, options.count)
        print(f"{name:40}" + "".join(f"{share:>14.3f}" for share in shares), flush=True)
        grids.append(np.asarray(grid))
    if options.grid:
        from PIL import Image

        Image.fromarray(np.concatenate(grids)).save(options.grid)


if __name__ == "__main__":
    main()
