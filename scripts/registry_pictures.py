"""Draw the pack's icon and banner for the Comfy Registry: straight paths from noise to picture of the built-in model.

    python3 scripts/devhost.py scripts/registry_pictures.py

Each picture of a row is the decoded x_0 + t v, where v is the one velocity that one-step InstaFlow asks its UNet for.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from instaflow_core.evaluation.drawing import Drawing  # noqa: E402
from instaflow_core.flow.guidance import GuidedUNet  # noqa: E402
from instaflow_core.flow.noise import indexed_noise  # noqa: E402
from instaflow_core.pictures.images import to_images  # noqa: E402
from instaflow_core.text import encode_prompts  # noqa: E402
from instaflow_core.weights.checkpoint import load  # noqa: E402

ICON, BANNER = ROOT / "docs" / "icon.png", ROOT / "docs" / "banner.png"
# What the registry takes: an icon up to 400 x 400, a banner of 21:9, which is seven cells by three.
ICON_SIZE = 400
CELL, COLUMNS = 150, 7
ROWS = (
    "a yellow star on a purple background",
    "a green triangle on a white background",
    "a blue ring on an orange background",
)
SUBJECT = "a large yellow star in the center on a purple background"
SEED = 3
COLORS = 64  # of the palette a PNG is written with
CORNER = 72  # pixels, the radius of the icon's corners


def main() -> None:
    """Write docs/icon.png and docs/banner.png."""
    drawing = Drawing(load("built-in: shapes"))
    times = [column / (COLUMNS - 1) for column in range(COLUMNS)]
    banner = Image.new("RGB", (COLUMNS * CELL, len(ROWS) * CELL))
    for row, text in enumerate(ROWS):
        for column, picture in enumerate(path(drawing, text, row, times)):
            banner.paste(enlarged(picture, CELL), (column * CELL, row * CELL))
    save(banner, BANNER)
    save(icon(path(drawing, SUBJECT, len(ROWS), [0.0, 1.0])), ICON)


@torch.no_grad()
def path(drawing: Drawing, text: str, index: int, times: list[float]) -> list[Image.Image]:
    """The decoded states at these times on the straight path that begins in noise (SEED, index)."""
    noise = indexed_noise(SEED, index, drawing.checkpoint.latent_shape())[None]
    states, empty = (encode_prompts(drawing.text_encoder, [words]) for words in (text, ""))
    velocity = GuidedUNet(drawing.unet, states, empty, 1.0).velocity(noise, 0.0)
    latents = torch.cat([noise + t * velocity for t in times])
    return to_images(drawing.vae.decode(latents / drawing.vae.config.scaling_factor, return_dict=False)[0])


def icon(ends: list[Image.Image]) -> Image.Image:
    """Noise on the left that becomes the picture on the right, in a square with round corners."""
    noise, picture = (enlarged(end, ICON_SIZE) for end in ends)
    fading = Image.linear_gradient("L").rotate(90).resize(noise.size).point(lambda t: min(255, max(0, 3 * t - 160)))
    whole = Image.composite(picture, noise, fading)
    corners = Image.new("L", whole.size, 0)
    ImageDraw.Draw(corners).rounded_rectangle((0, 0, ICON_SIZE - 1, ICON_SIZE - 1), CORNER, fill=255)
    whole.putalpha(corners)
    return whole


def enlarged(picture: Image.Image, size: int) -> Image.Image:
    """The picture at size x size, smoothed."""
    return picture.resize((size, size), Image.Resampling.BICUBIC)


def save(picture: Image.Image, target: Path) -> None:
    """As a PNG of few colours, which is a quarter of the size."""
    method = Image.Quantize.FASTOCTREE if picture.mode == "RGBA" else Image.Quantize.MEDIANCUT
    picture.quantize(COLORS, method).save(target, optimize=True)
    print(target, picture.size, f"{target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
