"""Prompt to pictures with a checkpoint, without any host, and to files: `python -m instaflow_core generate`."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .atomic import replacing
from .flow.diffusion import check_zero_snr
from .flow.noise import draw_noise
from .flow.sampling import check_steps, sample_latents
from .pictures.images import image_pictures
from .text import encode_prompts
from .weights.checkpoint import Checkpoint
from .weights.modules import build_text_encoder, build_unet, build_vae

TEACHER_STEPS = 25
TEACHER_GUIDANCE = 5.0


@dataclass(frozen=True)
class GenerationRequest:
    """One generation.

    steps, guidance, width, height: None takes what suits the checkpoint.
    draw: one of `flow.noise.DRAWS`.
    """

    prompt: str
    negative: str = ""
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    batch_size: int = 1
    draw: str = "comfyui"

    def settled(self, checkpoint: Checkpoint) -> "GenerationRequest":
        """The same request with every None filled in.

        Raises ValueError for a size the autoencoder cannot make, an empty batch, a number of steps that its rule does
        not have, guidance for a one-step model, which was trained without, or a noise schedule that its prediction
        cannot be sampled on.
        """
        check_zero_snr(checkpoint.prediction, checkpoint.zero_snr)
        rule, teaches = checkpoint.rule, not (checkpoint.is_flow or checkpoint.rule)
        steps = TEACHER_STEPS if teaches else rule.steps if rule else 1
        width, height = settled_size(checkpoint, self.width, self.height)
        settled = GenerationRequest(
            **asdict(self)
            | {
                "steps": steps if self.steps is None else self.steps,
                "guidance": (TEACHER_GUIDANCE if teaches else checkpoint.guidance)
                if self.guidance is None
                else self.guidance,
                "width": width,
                "height": height,
            }
        )
        if settled.batch_size < 1:
            raise ValueError(f"batch-size is {settled.batch_size}. Give 1 or more.")
        if settled.steps is None or settled.steps < 1:
            raise ValueError(f"steps is {settled.steps}. Give 1 or more.")
        check_steps(rule, settled.steps)
        if checkpoint.stage == "one-step" and settled.guidance is not None and settled.guidance > 1:
            raise ValueError(
                f"guidance is {settled.guidance}, and a one-step InstaFlow was trained without guidance. "
                "Leave it at 1.0, or use a 2-rectified flow, which takes 1.0 to 2.0."
            )
        return settled


def settled_size(checkpoint: Checkpoint, width: int | None, height: int | None) -> tuple[int, int]:
    """The width and height of pictures in pixels: the native size where None.

    Raises ValueError for a size the autoencoder cannot make.
    """
    unit, native = checkpoint.latent_downscale, checkpoint.native_size
    sides = {"width": native if width is None else width, "height": native if height is None else height}
    for name, pixels in sides.items():
        if pixels < unit or pixels % unit:
            raise ValueError(
                f"{name} {pixels} does not fit this autoencoder. Give a multiple of {unit}, {unit} or more; "
                f"the model was trained on {native}."
            )
    return sides["width"], sides["height"]


@torch.no_grad()
def generate(
    checkpoint: Checkpoint,
    request: GenerationRequest,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """The pictures of a settled request.

    A rectified flow is solved by Euler's method on the uniform grid, one UNet evaluation a step (eq. 3 of the paper); a
    few-step diffusion model is sampled by its rule; another checkpoint that predicts noise or v is sampled as the
    paper's teacher is, by DPM-Solver++.

    Returns:
        (B, 3, height, width) float32 on the CPU, in [0, 1].

    Raises ValueError where the checkpoint lacks its text encoder or its VAE.
    """
    assert request.steps and request.guidance is not None and request.width and request.height, "settle it first"
    text_encoder = build_text_encoder(checkpoint, dtype).to(device)
    prompts = [request.prompt, request.negative]
    text, negative = encode_prompts(text_encoder, prompts).chunk(2)
    unet, vae = build_unet(checkpoint, dtype).to(device), build_vae(checkpoint, dtype).to(device)
    shape = (request.batch_size, *checkpoint.latent_shape(request.width, request.height))
    noise = draw_noise(request.seed, shape, request.draw).to(device, dtype)
    latents = sample_latents(
        unet,
        checkpoint.prediction,
        text,
        negative,
        noise,
        request.steps,
        request.guidance,
        callback,
        checkpoint.zero_snr,
        checkpoint.rule,
    )
    pictures = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
    return (pictures.float().cpu() / 2 + 0.5).clamp(0, 1)


def save_pictures(pictures: Tensor, path: Path, parameters: dict[str, Any]) -> list[Path]:
    """Write (B, 3, H, W) pictures in [0, 1] as PNG files that say in a text chunk how they were made.

    A batch is numbered: name-1.png, name-2.png, …; one picture keeps the name.
    """
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("parameters", json.dumps(parameters, ensure_ascii=False))
    alone = len(pictures) == 1
    paths = [path if alone else path.with_stem(f"{path.stem}-{i + 1}") for i in range(len(pictures))]
    for picture, target in zip(image_pictures(pictures.permute(0, 2, 3, 1)), paths, strict=True):
        with replacing(target) as temporary:
            picture.save(temporary, format="PNG", pnginfo=text)
    return paths
