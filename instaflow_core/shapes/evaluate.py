"""Pictures of many captions from one model, and the share of them that the judge accepts."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ..checkpoints import Checkpoint, build_text_encoder, build_unet, build_vae
from ..generate import sample_latents
from ..noise import indexed_noise
from ..text import encode_prompts
from .captions import Caption
from .judge import judge


@torch.no_grad()
def draw_pictures(
    checkpoint: Checkpoint, captions: Sequence[Caption], seed: int, steps: int, guidance: float, batch_size: int = 64
) -> list[Image.Image]:
    """One picture of each caption; the i-th starts from noise (seed, i). The model's native size, float32."""
    encoder, unet, vae = build_text_encoder(checkpoint), build_unet(checkpoint), build_vae(checkpoint)
    side = checkpoint.native_size // checkpoint.latent_downscale
    shape = (unet.config.in_channels, side, side)
    empty = encode_prompts(encoder, [""])
    pictures = []
    for first in range(0, len(captions), batch_size):
        texts = [str(c) for c in captions[first : first + batch_size]]
        states = encode_prompts(encoder, texts)
        noise = torch.stack([indexed_noise(seed, first + i, shape) for i in range(len(texts))])
        latents = sample_latents(unet, checkpoint.prediction, states, empty, noise, steps, guidance)
        pictures += to_images(vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0])
    return pictures


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Pictures (B, 3, H, W) in [-1, 1] as images."""
    scaled = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    return [Image.fromarray(picture.numpy()) for picture in scaled]


def accuracy(pictures: Sequence[Image.Image], captions: Sequence[Caption]) -> float:
    """The share of pictures that show what their caption says, 0 to 1."""
    return sum(map(judge, pictures, captions)) / len(captions)


def contact_sheet(pictures: Sequence[Image.Image], columns: int, gap: int = 4) -> Image.Image:
    """The pictures in rows on grey."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "gray")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (gap + i % columns * (width + gap), gap + i // columns * (height + gap)))
    return sheet
