"""A checkpoint as something that draws: texts and noise to pictures, and the paths between."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from ..flow.diffusion import noise_prediction
from ..flow.guidance import GuidedUNet
from ..flow.solvers import time_grid
from ..flow.straightness import diffusion_trajectory, flow_trajectory, straightness
from ..pictures.images import to_images
from ..text import encode_prompts
from ..triplets.writing import latent_maker
from ..weights.checkpoint import Checkpoint
from ..weights.files import fingerprint
from ..weights.modules import build_text_encoder, build_unet, build_vae

PATH_STEPS = 100
"""Steps of a path whose straightness is measured."""


class Drawer(Protocol):
    """A model that draws.

    checkpoint: what the model says of itself; the weights need not be in it.
    identity: all that its pictures depend on beside texts, noise, steps and guidance.
    """

    checkpoint: Checkpoint
    identity: dict[str, Any]

    def pictures(self, texts: Sequence[str], noise: Tensor, steps: int, guidance: float) -> list[Image.Image]:
        """A picture of each text from its noise (N, C, H, W): Euler's method for a flow, DPM-Solver++ for a teacher, a
        few-step model by its rule."""
        ...

    def straightness(self, texts: Sequence[str], noise: Tensor, guidance: float) -> Tensor:
        """S of each picture's path in PATH_STEPS steps (section 2 of the paper), (N,); a teacher's in rectified-flow
        coordinates."""
        ...


class ModulesDrawing:
    """Modules on one device that draw; `checkpoint` says what they are."""

    def __init__(
        self, checkpoint: Checkpoint, text_encoder: Any, unet: Any, vae: Any, identity: dict[str, Any]
    ) -> None:
        self.checkpoint, self.identity = checkpoint, identity
        self.text_encoder, self.unet, self.vae = text_encoder, unet, vae

    @torch.no_grad()
    def pictures(self, texts: Sequence[str], noise: Tensor, steps: int, guidance: float) -> list[Image.Image]:
        """As `Drawer` says."""
        checkpoint = self.checkpoint
        draw = latent_maker(
            self.text_encoder, self.unet, checkpoint.prediction, steps, guidance, checkpoint.zero_snr, checkpoint.rule
        )
        return self.decoded(draw(list(texts), noise))

    @torch.no_grad()
    def decoded(self, latents: Tensor) -> list[Image.Image]:
        """The pictures of latents (N, C, H, W) on its device."""
        latents = latents.to(next(self.vae.parameters()).dtype)
        return to_images(self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0])

    @torch.no_grad()
    def straightness(self, texts: Sequence[str], noise: Tensor, guidance: float) -> Tensor:
        """As `Drawer` says."""
        states, empty = encode_prompts(self.text_encoder, list(texts)), encode_prompts(self.text_encoder, [""])
        weight = next(self.unet.parameters())
        noise = noise.to(weight.device, weight.dtype)
        guided = GuidedUNet(self.unet, states, empty, guidance)
        if self.checkpoint.is_flow:
            times = time_grid(PATH_STEPS)
            path = flow_trajectory(guided.velocity, noise, times)
        else:
            path, times = diffusion_trajectory(
                noise_prediction(guided, self.checkpoint.prediction), noise, PATH_STEPS
            )  # fmt: skip
        return each_straightness(path, times)


class Drawing(ModulesDrawing):
    """A checkpoint's modules on a device.

    Raises:
        ValueError: the checkpoint lacks its text encoder or its VAE.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        identity = {
            "checkpoint": fingerprint(checkpoint.unet),
            "prediction": checkpoint.sampled_as,
            "dtype": str(dtype).removeprefix("torch."),
        }
        text_encoder, unet, vae = (
            build(checkpoint, dtype).to(device) for build in (build_text_encoder, build_unet, build_vae)
        )
        super().__init__(checkpoint, text_encoder, unet, vae, identity)


def each_straightness(path: Sequence[Tensor], times: Tensor) -> Tensor:
    """S of each latent's path, (B,), from the states (B, C, H, W) of all."""
    each = zip(*(state.split(1) for state in path), strict=True)
    return torch.tensor([straightness(states, times).value for states in each])
