"""Training the decoder on, on latents as models make them, while the latents, and so every other stage, stay.

First on what the teacher takes noisy latents for, where the true picture is known; then on what the finished models
draw, where it is the scene that lies nearest to what the decoder shows so far.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...flow.diffusion import noise_schedule
from ...flow.noise import indexed_generator
from ...training.batches import BatchPart, PromptStates
from .anatomy import LATENT_SHAPE
from .autoencoder import LATENT_NOISE, reconstruction_error

_TIMESTEPS = (20, 600)
"""Where the teacher errs about as much as a model of few steps does; above, it no longer knows the picture."""
_TRUE_SHARE = 4


class DenoisedBatches:
    """(Step, part) -> pictures (B, 3, 64, 64) in [0, 1], and latents (B, 4, 8, 8) a model has made of them.

    The latents are what the teacher takes noisy ones of the picture for, knowing the caption: its errors are those of
    models (a shape of no clear outline, a colour between two), which plain noise does not have. Every fourth are the
    picture's own, with a little noise.

    Args:
        pictures: (N, 3, 64, 64) uint8; latents: (N, 4, 8, 8), of these pictures; texts: their captions.
    """

    def __init__(
        self, teacher: Any, text_encoder: Any, texts: list[str], pictures: Tensor, latents: Tensor, size: int, seed: int
    ) -> None:
        self.teacher, self.states, self.texts = teacher, PromptStates(text_encoder), texts
        self.pictures, self.latents, self.size, self.seed = pictures, latents, size, seed
        self.schedule = noise_schedule()

    def __call__(self, step: int, part: BatchPart) -> tuple[Tensor, Tensor]:
        generator, rows = indexed_generator(self.seed, step), part.rows(self.size)
        index = torch.randint(len(self.latents), (self.size,), generator=generator)[rows]
        noise = torch.randn(self.size, *LATENT_SHAPE, generator=generator)[rows]
        timesteps = torch.randint(*_TIMESTEPS, (self.size,), generator=generator)[rows]
        latents = self.latents[index]
        states = self.states([self.texts[i] for i in index.tolist()])
        made = self._denoised(self.schedule.add_noise(latents, noise, timesteps), timesteps, states)
        true = (torch.arange(self.size)[rows] % _TRUE_SHARE == 0).view(-1, 1, 1, 1)
        return self.pictures[index].float() / 255, torch.where(true, latents + LATENT_NOISE * noise, made)

    @torch.no_grad()
    def _denoised(self, noisy: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        """(x_t - sigma eps(x_t, t | text)) / alpha."""
        device = next(self.teacher.parameters()).device
        x_t, t, text = noisy.to(device), timesteps.to(device), states.to(device)
        with torch.autocast(device.type, torch.bfloat16):
            noise = self.teacher(x_t, t, encoder_hidden_states=text, return_dict=False)[0].float().cpu()
        kept = self.schedule.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return (noisy - (1 - kept).sqrt() * noise) / kept.sqrt()


class DrawnBatches:
    """(Step, part) -> pictures (B, 3, 64, 64) in [0, 1], and latents (B, 4, 8, 8), as many of each source.

    Args:
        sources: pictures (N, 3, 64, 64) uint8 and latents (N, 4, 8, 8) that should be decoded to them. The first are
            true ones, and get a little noise.
        size: B, a multiple of the number of sources.
    """

    def __init__(self, sources: Sequence[tuple[Tensor, Tensor]], size: int, seed: int) -> None:
        self.sources, self.size, self.seed = sources, size, seed

    def __call__(self, step: int, part: BatchPart) -> tuple[Tensor, Tensor]:
        generator, rows = indexed_generator(self.seed, step), part.rows(self.size)
        each = self.size // len(self.sources)
        noise = LATENT_NOISE * torch.randn(each, *LATENT_SHAPE, generator=generator)
        pictures, latents = [], []
        for number, (shown, drawn) in enumerate(self.sources):
            index = torch.randint(len(drawn), (each,), generator=generator)
            pictures.append(shown[index].float() / 255)
            latents.append(drawn[index] if number else drawn[index] + noise)
        return torch.cat(pictures)[rows], torch.cat(latents)[rows]


def decoder_loss(decoder: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Reconstruction from latents that stay as they are."""
    pictures, latents = batch
    return reconstruction_error(decoder(latents), pictures)
