"""What a TAESD is trained on and how: pictures and latents of the VAE whose place it takes, and the two halves' losses.

As its author trained it (https://github.com/madebyollin/taesd/issues/2): the encoder by its squared distance from the
VAE's latents, the decoder to make a picture of them; here by its distance from the VAE's own picture, with no
adversary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from ..flow.noise import indexed_generator
from ..pictures.images import image_tensor
from ..pictures.sources import Pictures
from ..triplets.reading import SetReader
from ..weights.checkpoint import Checkpoint
from ..weights.files import Config
from ..weights.modules import build_vae
from ..weights.taesd import DOWNSCALE
from .batches import BatchPart
from .objectives import Distance, lpips_metric

Given = dict[str, Tensor]
"""A part of a batch: "latents" (B, C, H, W) of a UNet, or "pictures" (B, 3, 8 H, 8 W) in [-1, 1]; on the CPU."""
Batches = Callable[[int, BatchPart], Given]
PICTURE_LOSSES = ("l1", "l2", "lpips")


class Tiny(nn.Module):
    """A TAESD's decoder and, where it is trained with it, its encoder.

    Args:
        config: of diffusers' AutoencoderTiny.
    """

    def __init__(self, config: Config, seed: int, encoder: bool) -> None:
        from diffusers import AutoencoderTiny

        super().__init__()
        # The library initialises from the global generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vae: Any = AutoencoderTiny.from_config(config)
        self.decoder, self.encoder = vae.decoder, vae.encoder if encoder else None

    def forward(self, latents: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        """Pictures in [-1, 1] of latents, and latents of pictures."""
        return self.decoder(latents), None if self.encoder is None else self.encoder(pictures)


class FullVAE:
    """A checkpoint's VAE, frozen, between pictures in [-1, 1] and latents as its UNet has them."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.vae = build_vae(checkpoint).requires_grad_(False)
        self.vae.enable_slicing()  # one picture at a time: it is many times as large as what is trained
        self.scale = self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures as they are shown: what is beyond black or white is not."""
        return self.vae.to(latents.device).decode(latents / self.scale, return_dict=False)[0].float().clamp(-1, 1)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """The most likely latents, without noise."""
        encoded = self.vae.to(pictures.device).encode(pictures, return_dict=False)[0]
        return (encoded if isinstance(encoded, Tensor) else encoded.mode()).float() * self.scale


def tiny_step(full: FullVAE, distance: Distance) -> Callable[[Any, Given], Tensor]:
    """The loss of a batch: how far the decoder's pictures are from the VAE's, and the encoder's latents from the VAE's.

    Of latents of which there is no picture, the VAE's own one stands for it.
    """

    def step(tiny: Any, given: Given) -> Tensor:
        latents = given["latents"] if "latents" in given else full.encode(given["pictures"])
        shown = full.decode(latents)
        decoded, encoded = tiny(latents, given.get("pictures", shown))
        loss = distance(decoded.float(), shown)
        return loss if encoded is None else loss + mse_loss(encoded.float(), latents)

    return step


def picture_distance(name: str) -> Distance:
    """One of PICTURE_LOSSES between pictures in [-1, 1]: the mean absolute or squared distance; or the first and LPIPS,
    which keeps fine structure that the others average away.

    Raises:
        ValueError: LPIPS, or the weights of its VGG, cannot be had.
    """
    if name != "lpips":
        return {"l1": l1_loss, "l2": mse_loss}[name]
    metric = lpips_metric().requires_grad_(False)

    def distance(decoded: Tensor, shown: Tensor) -> Tensor:
        return l1_loss(decoded, shown) + metric.to(shown.device)(decoded, shown).mean()

    return distance


class LatentBatches:
    """The latents of a set, a random `size` x `size` part of each where they are larger."""

    def __init__(self, reader: SetReader, batch_size: int, size: int, seed: int) -> None:
        self.reader, self.batch_size, self.size, self.seed = reader, batch_size, size, seed

    def __call__(self, step: int, part: BatchPart) -> Given:
        rows, first = part.rows(self.batch_size), step * self.batch_size
        latents = self.reader.read(range(first + rows.start, first + rows.stop)).latents.float()
        places = torch.rand(self.batch_size, 2, generator=indexed_generator(self.seed, step))[rows]
        return {
            "latents": torch.stack([_cut(x, self.size, *at) for x, at in zip(latents, places.tolist(), strict=True)])
        }


def _cut(latents: Tensor, size: int, down: float, right: float) -> Tensor:
    """A part of latents (C, H, W) of at most so many rows and columns, at places from 0 to 1."""
    height, width = (min(size, side) for side in latents.shape[1:])
    top, left = int(down * (latents.shape[1] - height + 1)), int(right * (latents.shape[2] - width + 1))
    return latents[:, top : top + height, left : left + width]


class PictureBatches:
    """The first `count` of pictures, drawn anew for each step; a random square of each, at `size` x `size` latents."""

    def __init__(self, pictures: Pictures, count: int, batch_size: int, size: int, seed: int) -> None:
        self.pictures, self.count, self.batch_size, self.size, self.seed = pictures, count, batch_size, size, seed

    def __call__(self, step: int, part: BatchPart) -> Given:
        generator, rows = indexed_generator(self.seed, step), part.rows(self.batch_size)
        indices = torch.randint(self.count, (self.batch_size,), generator=generator)[rows].tolist()
        places = torch.rand(self.batch_size, 2, generator=generator)[rows].tolist()
        return {"pictures": squares(self.pictures.read(indices), DOWNSCALE * self.size, places)}


def squares(pictures: Sequence[Image.Image], side: int, places: Sequence[Sequence[float]] | None = None) -> Tensor:
    """A square of each picture, as large as it can be, at `side` x `side` pixels in [-1, 1]: its middle, or at places
    from 0 to 1 to the right and down."""
    places = places or [(0.5, 0.5)] * len(pictures)
    cut = [
        ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS, centering=(at[0], at[1]))
        for picture, at in zip(pictures, places, strict=True)
    ]
    return image_tensor(cut).permute(0, 3, 1, 2) * 2 - 1


def by_turns(sources: Sequence[Batches]) -> Batches:
    """Batches of one source after another."""

    def batch(step: int, part: BatchPart) -> Given:
        return sources[step % len(sources)](step // len(sources), part)

    return batch
