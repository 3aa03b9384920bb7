"""What a training shows of itself: its losses, as lines and as a curve, and what its model draws."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from ..atomic import replacing
from ..flow.noise import indexed_noise
from ..flow.sampling import sample_latents
from ..pictures.charts import draw_curve
from ..pictures.images import contact_sheet, to_images
from ..text import encode_prompts
from ..weights.checkpoint import Checkpoint
from ..weights.modules import build_vae


def draw_losses(losses: Sequence[float], title: str) -> Image.Image:
    """The loss over the iterations, faint, and smoothed over it; on a logarithmic axis where every loss is positive.

    Raises:
        ValueError: no loss is finite.
    """
    iterations = range(1, len(losses) + 1)
    return draw_curve({"loss": (iterations, losses)}, title, "iteration", "loss", log_y=True, smooth=True)


@dataclass(frozen=True)
class InTraining:
    """A model in training, for what measures it.

    init: what the training started from; checkpoint: what it is to become, without weights.
    unet: the module that is trained, with the averaged weights when something is called that looks at it.
    latents: some of those it learns from (N, C, H, W), each of a prompt.
    goes_on: whether there is a checkpoint of the run in `work`.
    """

    stage: str
    init: Checkpoint
    checkpoint: Checkpoint
    text_encoder: Any
    unet: Any
    prompts: Sequence[str]
    latents: Tensor
    work: Path
    goes_on: bool


class Watcher(Protocol):
    """Measures a model in training, on the process that writes, while it holds the averaged weights."""

    def __call__(self, step: int) -> None:
        """Measure it after so many steps; the same again where a resumed run repeats them."""
        ...

    def charts(self) -> dict[str, Image.Image]:
        """What has been measured, by the name of a chart."""
        ...


class SampleSheets:
    """Sheets of what the model draws, always from the same prompts (the first COUNT) and noise: one after each call."""

    COUNT = 8

    def __init__(
        self,
        init: Checkpoint,
        text_encoder: Any,
        prompts: Sequence[str],
        latent_shape: tuple[int, ...],
        unet: Any,
        steps: int,
        seed: int,
        folder: Path,
        preview: Callable[[Image.Image], None] | None,
    ) -> None:
        texts = list(prompts[: self.COUNT])
        self.states = encode_prompts(text_encoder, texts)
        # Indices that no triplet has: the model has not been trained on this noise.
        self.noise = torch.stack([indexed_noise(seed, -1 - i, latent_shape) for i in range(len(texts))])
        self.vae, self.unet, self.folder, self.preview = build_vae(init), unet, folder, preview
        self.vae.enable_slicing()  # one picture at a time: a sheet must fit where the training does
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


class LossLines:
    """A progress callback that prints the mean loss and the speed now and then."""

    def __init__(self, name: str, steps: int, interval: int = 100):
        self.name, self.steps, self.interval = name, steps, interval
        self.start, self.losses = time.monotonic(), list[float]()

    def __call__(self, step: int, loss: float) -> None:
        self.losses.append(loss)
        if len(self.losses) == self.interval or step == self.steps:
            seconds = (time.monotonic() - self.start) / len(self.losses)
            mean = math.fsum(self.losses) / len(self.losses)
            print(f"{self.name} {step}/{self.steps}  loss {mean:.5f}  {seconds:.3f} s/step", flush=True)
            self.start, self.losses = time.monotonic(), []
