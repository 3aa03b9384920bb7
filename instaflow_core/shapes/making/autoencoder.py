"""Training the built-in autoencoder: pictures to latents at an eighth of their size, about N(0, 1), and back."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...flow.noise import indexed_generator
from ...training.batches import BatchPart
from ..captions import COLORS, all_captions, sample_captions
from ..render import SMALL, Scene, render, render_all, sample_scene
from .anatomy import LATENT_SHAPE, NATIVE_SIZE

LATENT_NOISE = 0.1
"""Noise added to latents in training, so that the decoder forgives small errors of a generator."""
_LEAST_VARIANCE = 0.01
_FINE_SHAPES = ("star", "cross", "ring")
_BUSY_EXTENT = (0.7 * SMALL, 1.4 * SMALL)


def render_pictures(count: int, seed: int) -> Tensor:
    """`count` pictures of training captions as (count, 3, 64, 64) uint8."""
    rng = random.Random(seed)
    captions = sample_captions(count, seed)
    pictures = [np.asarray(render(sample_scene(c, rng), NATIVE_SIZE)) for c in captions]
    return _tensor(pictures)


def render_busy_pictures(count: int, seed: int) -> Tensor:
    """`count` pictures of several small shapes each, as (count, 3, 64, 64) uint8: what an autoencoder learns most from.

    An ordinary picture is mostly flat. Shapes with fine parts come twice as often; no combination is a held-out one.
    """
    rng = random.Random(seed)
    palette = {b: [c for c in all_captions(held_out=False) if c.background == b and c.size is None] for b in COLORS}
    pictures = []
    for _ in range(count):
        captions = palette[rng.choice(list(COLORS))]
        weights = [2 if c.shape in _FINE_SHAPES else 1 for c in captions]
        scenes = []
        for caption in rng.choices(captions, weights, k=rng.randint(3, 6)):
            extent = rng.uniform(*_BUSY_EXTENT)
            x, y = (rng.uniform(extent / 2, 1 - extent / 2) for _ in range(2))
            scenes.append(Scene(caption, extent, x, y))
        pictures.append(np.asarray(render_all(scenes, NATIVE_SIZE)))
    return _tensor(pictures)


def _tensor(pictures: list[Any]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


class PictureBatches:
    """(Step, part) -> (B, 3, 64, 64) float pictures in [0, 1], and (B, 4, 8, 8) noise.

    Whole pictures: an autoencoder that has seen only crops leans on their edges, and fails away from an edge.
    """

    def __init__(self, pictures: Tensor, batch_size: int, seed: int):
        self.pictures, self.batch_size, self.seed = pictures, batch_size, seed

    def __call__(self, step: int, part: BatchPart) -> tuple[Tensor, Tensor]:
        generator, rows = indexed_generator(self.seed, step), part.rows(self.batch_size)
        index = torch.randint(len(self.pictures), (self.batch_size,), generator=generator)
        noise = torch.randn(self.batch_size, *LATENT_SHAPE, generator=generator)
        return self.pictures[index[rows]].float() / 255, noise[rows]


def autoencoder_loss(vae: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Reconstruction, and a pull of the latents' mean and deviation to 0 and 1."""
    pictures, noise = batch
    latents = vae.encoder(pictures * 2 - 1)
    decoded = vae.decoder(latents + LATENT_NOISE * noise)
    latents = latents.float()
    moments = latents.mean((0, 2, 3)).square().mean() + (latents.std((0, 2, 3)) - 1).square().mean()
    return reconstruction_error(decoded, pictures) + 0.1 * moments


def reconstruction_error(decoded: Tensor, pictures: Tensor) -> Tensor:
    """Squared error of a decoder's pictures in [-1, 1] as a share of each picture's own variance.

    A small shape in a colour near the background's counts as much as a large one that stands out: left to the plain
    error it would be learned last. An absolute error looks mostly at the faint unevenness of large flat parts.
    """
    wanted = pictures * 2 - 1
    error = (decoded.float() - wanted).square().mean((1, 2, 3))
    return (error / (wanted.var((2, 3)).mean(1) + _LEAST_VARIANCE)).mean()
