"""Pictures of many captions from one model, and the share of them that the judge accepts."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from ..flow.noise import indexed_noise
from ..flow.sampling import sample_latents
from ..pictures.images import to_images
from ..text import encode_prompts
from ..weights.checkpoint import Checkpoint
from ..weights.modules import build_text_encoder, build_unet, build_vae
from .captions import Caption
from .judge import judge

Modules = tuple[Any, Any, Any]


def build(checkpoint: Checkpoint) -> Modules:
    """The text encoder, the UNet and the VAE."""
    return build_text_encoder(checkpoint), build_unet(checkpoint), build_vae(checkpoint)


@torch.no_grad()
def draw_pictures(
    checkpoint: Checkpoint,
    captions: Sequence[Caption],
    seed: int,
    steps: int,
    guidance: float,
    batch_size: int = 64,
    modules: Modules | None = None,
) -> list[Image.Image]:
    """One picture of each caption; the i-th starts from noise (seed, i). The model's native size, float32.

    modules: what `build` makes of the checkpoint, where it is there already.
    """
    encoder, unet, vae = modules or build(checkpoint)
    shape = checkpoint.latent_shape()
    empty = encode_prompts(encoder, [""])
    pictures = []
    for first in range(0, len(captions), batch_size):
        texts = [str(c) for c in captions[first : first + batch_size]]
        states = encode_prompts(encoder, texts)
        noise = torch.stack([indexed_noise(seed, first + i, shape) for i in range(len(texts))])
        latents = sample_latents(unet, checkpoint.prediction, states, empty, noise, steps, guidance)
        pictures += to_images(vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0])
    return pictures


def accuracy(pictures: Sequence[Image.Image], captions: Sequence[Caption]) -> float:
    """The share of pictures that show what their caption says, 0 to 1."""
    return sum(map(judge, pictures, captions)) / len(captions)
