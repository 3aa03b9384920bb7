"""Training the built-in autoencoder: pictures to latents at an eighth of their size, about N(0, 1), and back."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..noise import indexed_generator
from .anatomy import LATENT_SHAPE, NATIVE_SIZE
from .captions import sample_captions
from .render import render, sample_scene

LATENT_NOISE = 0.05
"""Noise added to latents in training, so that the decoder forgives small errors of a generator."""


def render_pictures(count: int, seed: int) -> Tensor:
    """`count` pictures of training captions as (count, 3, 64, 64) uint8."""
    rng = random.Random(seed)
    captions = sample_captions(count, seed)
    pictures = [np.asarray(render(sample_scene(c, rng), NATIVE_SIZE)) for c in captions]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


class PictureBatches:
    """Step -> (B, 3, 64, 64) float pictures in [0, 1], and (B, 4, 8, 8) noise.

    Whole pictures: an autoencoder that has seen only crops leans on their edges, and fails away from an edge.
    """

    def __init__(self, pictures: Tensor, batch_size: int, seed: int):
        self.pictures, self.batch_size, self.seed = pictures, batch_size, seed

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        generator = indexed_generator(self.seed, step)
        index = torch.randint(len(self.pictures), (self.batch_size,), generator=generator)
        return self.pictures[index].float() / 255, torch.randn(self.batch_size, *LATENT_SHAPE, generator=generator)


def autoencoder_loss(vae: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Reconstruction, and a pull of the latents' mean and deviation to 0 and 1."""
    pictures, noise = batch
    latents = vae.encoder(pictures * 2 - 1)
    decoded = vae.decoder(latents + LATENT_NOISE * noise)
    latents = latents.float()
    moments = latents.mean((0, 2, 3)).square().mean() + (latents.std((0, 2, 3)) - 1).square().mean()
    return reconstruction_error(decoded, pictures) + 0.02 * moments


def decoder_loss(decoder: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Reconstruction from latents that stay as they are."""
    pictures, latents = batch
    return reconstruction_error(decoder(latents), pictures)


def reconstruction_error(decoded: Tensor, pictures: Tensor) -> Tensor:
    """Squared error of a decoder's pictures in [-1, 1], which looks at edges and small shapes.

    An absolute error looks mostly at the faint unevenness of large flat parts, and learns shapes later.
    """
    return (decoded.float() - (pictures * 2 - 1)).square().mean()
