"""What a training shows of itself: its losses as a curve, and what its model draws."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..atomic import replacing
from ..flow.noise import indexed_noise
from ..flow.sampling import sample_latents
from ..pictures.charts import draw_curve
from ..pictures.images import contact_sheet, to_images
from ..text import encode_prompts
from ..triplets.reading import Triplets
from ..weights.checkpoint import Checkpoint
from ..weights.modules import build_vae


def draw_losses(losses: Sequence[float], title: str) -> Image.Image:
    """The loss over the iterations, faint, and smoothed over it; on a logarithmic axis where every loss is positive.

    Raises:
        ValueError: no loss is finite.
    """
    iterations = range(1, len(losses) + 1)
    return draw_curve({"loss": (iterations, losses)}, title, "iteration", "loss", log_y=True, smooth=True)


class Samples:
    """Sheets of what the model draws, always from the same prompts and noise: one after each call."""

    COUNT = 8

    def __init__(
        self,
        init: Checkpoint,
        text_encoder: Any,
        triplets: Triplets,
        unet: Any,
        steps: int,
        seed: int,
        folder: Path,
        preview: Callable[[Image.Image], None] | None,
    ) -> None:
        block, rows = next(triplets.draw(range(min(256, len(triplets)))))
        texts = list(dict.fromkeys(block.texts[row] for row in rows.tolist() if block.texts[row]))[: self.COUNT] or [""]
        self.states = encode_prompts(text_encoder, texts)
        shape = triplets.info.latent_shape
        # Indices that no record has: the model has not been trained on this noise.
        self.noise = torch.stack([indexed_noise(seed, -1 - i, shape) for i in range(len(texts))])
        self.vae, self.unet, self.folder, self.preview = build_vae(init), unet, folder, preview
        self.steps = steps

    def __call__(self, step: int) -> None:
        device = next(self.unet.parameters()).device
        noise, states = self.noise.to(device), self.states.to(device)
        latents = sample_latents(self.unet, "velocity", states, states, noise, self.steps, 1.0)
        pixels = self.vae.to(device).decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
        self.vae.to("cpu")
        sheet = contact_sheet(to_images(pixels), min(4, len(noise)))
        with replacing(self.folder / f"{step:06d}.png") as temporary:
            sheet.save(temporary, format="PNG")
        if self.preview:
            self.preview(sheet)
