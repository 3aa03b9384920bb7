"""make table: how often the built-in models draw what the caption says; prints a table, writes build/table.json.

The judge looks at each picture: background, colour, shape, and place and size where the caption names them. Caption i
starts from the noise of seed i, without the host.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass

import torch
from demo import write_atomically
from devhost import ROOT
from PIL import Image
from tqdm import tqdm

# Last on the path: our nodes/ would shadow a host's module of that name.
sys.path.append(str(ROOT))

from instaflow_core.checkpoints import Checkpoint, build_text_encoder, build_unet, build_vae, load
from instaflow_core.generate import Request
from instaflow_core.noise import draw_noise
from instaflow_core.shapes.captions import Caption, sample_captions
from instaflow_core.shapes.judge import judge
from instaflow_core.solvers import euler, time_grid
from instaflow_core.teacher import sample_teacher
from instaflow_core.text import encode_prompts
from instaflow_core.velocity import GuidedVelocity

RESULTS = ROOT / "build" / "table.json"
BATCH = 50
CAPTION_SEED = 20_230_912
MODELS = (
    ("built-in: shapes", 1),
    ("built-in: shapes-2rf", 1),
    ("built-in: shapes-2rf", 4),
    ("built-in: shapes-2rf", 25),
    ("built-in: shapes-teacher", 25),
)


@dataclass(frozen=True)
class Row:
    """One line of the table: shares of pictures judged right, and seconds a picture in batches of BATCH."""

    model: str
    steps: int
    guidance: float
    training_part: float
    held_out: float
    seconds: float


@torch.no_grad()
def draw(checkpoint: Checkpoint, captions: list[Caption], steps: int, guidance: float) -> list[Image.Image]:
    """One picture a caption, caption i from the noise of seed i, at the model's native size."""
    text_encoder, unet, vae = build_text_encoder(checkpoint), build_unet(checkpoint), build_vae(checkpoint)
    side = checkpoint.native_size // checkpoint.latent_downscale
    empty = encode_prompts(text_encoder, [""])
    pictures = []
    for start in tqdm(range(0, len(captions), BATCH), leave=False):
        part = [str(caption) for caption in captions[start : start + BATCH]]
        text, negative = encode_prompts(text_encoder, part), empty.expand(len(part), -1, -1)
        shape = (1, unet.config.in_channels, side, side)
        noise = torch.cat([draw_noise(seed, shape) for seed in range(start, start + len(part))])
        if checkpoint.prediction == "epsilon":
            latents = sample_teacher(unet, text, negative, noise, steps, guidance)
        else:
            latents = euler(GuidedVelocity(unet, text, negative, guidance), noise, time_grid(steps))
        decoded = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        pixels = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        pictures += [Image.fromarray(picture) for picture in pixels]
    return pictures


def evaluate(model: str, steps: int, count: int) -> Row:
    """Draw and judge `count` captions of each part."""
    checkpoint = load(model)
    guidance = Request("", steps=steps).settled(checkpoint).guidance
    assert guidance is not None
    shares = []
    started = time.perf_counter()
    for held_out in (False, True):
        captions = sample_captions(count, CAPTION_SEED, held_out)
        pictures = draw(checkpoint, captions, steps, guidance)
        shares.append(sum(map(judge, pictures, captions)) / count)
    seconds = (time.perf_counter() - started) / (2 * count)
    return Row(model, steps, guidance, shares[0], shares[1], seconds)


def main() -> None:
    """Evaluate every model, print the table, write the file."""
    parser = argparse.ArgumentParser(prog="make table", description=__doc__)
    parser.add_argument("--count", type=int, default=400, help="captions of each part")
    count = parser.parse_args().count
    print(f"{'model':26}{'steps':>6}{'guidance':>9}{'training part':>15}{'held out':>10}{'s / picture':>13}")
    rows = []
    for model, steps in MODELS:
        row = evaluate(model, steps, count)
        rows.append(row)
        shares = f"{row.training_part:>15.3f}{row.held_out:>10.3f}"
        print(f"{row.model:26}{row.steps:>6}{row.guidance:>9.1f}{shares}{row.seconds:>13.3f}", flush=True)
    results = {"captions_a_part": count, "rows": [asdict(row) for row in rows]}
    write_atomically(RESULTS, (json.dumps(results, indent=2) + "\n").encode())
    print(RESULTS.relative_to(ROOT))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
