"""Tensors as pictures and back, and many pictures as one."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def image_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as a (B, H, W, 3) float32 tensor in [0, 1]."""
    return torch.stack([torch.from_numpy(np.array(p.convert("RGB"), dtype=np.float32) / 255) for p in pictures])


def image_pictures(images: Tensor) -> list[Image.Image]:
    """A (B, H, W, 3) tensor in [0, 1] as pictures; values outside are clipped."""
    pixels = (images.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]


def to_images(pixels: Tensor) -> list[Image.Image]:
    """What a decoder made, (B, 3, H, W) in [-1, 1], as pictures."""
    return image_pictures((pixels.permute(0, 2, 3, 1) + 1) / 2)


def contact_sheet(pictures: Sequence[Image.Image], columns: int, gap: int = 4) -> Image.Image:
    """The pictures in rows on grey."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "gray")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (gap + i % columns * (width + gap), gap + i // columns * (height + gap)))
    return sheet
