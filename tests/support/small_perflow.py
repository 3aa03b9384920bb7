"""A random Stable Diffusion 1.5 and a PeRFlow delta for it, and what the published sampler makes of their sum.

The smallest UNet that every stock loader takes for a Stable Diffusion 1.5: one layer a level, none in the middle.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sd15 import TEXT, UNET, VAE, random_weights
from torch import Tensor

from instaflow_core.flow.diffusion import noise_schedule
from instaflow_core.flow.perflow import window_levels, window_velocity
from instaflow_core.text import encode_prompts
from instaflow_core.weights.checkpoint import Checkpoint
from instaflow_core.weights.layouts import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX
from instaflow_core.weights.matching import rows_of, to_ldm
from instaflow_core.weights.modules import build_text_encoder, build_unet

FEW_LAYERS: dict[str, Any] = UNET | {
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "mid_block_type": None,
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
_WITH_MIDDLE = FEW_LAYERS | {"mid_block_type": "UNetMidBlock2DCrossAttn"}
_ROWS = [row for row in rows_of("unet", _WITH_MIDDLE) if not row.diffusers.startswith("mid_block.")]
_TEXT_ROWS, _VAE_ROWS = rows_of("text_encoder", TEXT), rows_of("vae", VAE)


def new_base() -> Checkpoint:
    """UNet, text encoder and VAE, in half precision."""
    parts = ((_ROWS, FEW_LAYERS), (_TEXT_ROWS, TEXT), (_VAE_ROWS, VAE))
    return Checkpoint(*(part for rows, config in parts for part in (random_weights(rows), config)))


def new_delta() -> dict[str, Tensor]:
    """What is added to every tensor of the UNet: a third of a UNet's weights."""
    return {name: weight * 0.3 for name, weight in random_weights(_ROWS, seed=1).items()}


def install(models: Path, base: Checkpoint, file: str, delta: dict[str, Tensor], delta_file: str) -> None:
    """Write checkpoints/`file`, one file in LDM names, and diffusion_models/`delta_file`, in diffusers names."""
    assert base.text_encoder and base.vae
    whole = to_ldm(base.unet, _ROWS, UNET_PREFIX)
    whole |= to_ldm(base.text_encoder, _TEXT_ROWS, TEXT_PREFIX) | to_ldm(base.vae, _VAE_ROWS, VAE_PREFIX)
    paths = [models / "checkpoints" / file, models / "diffusion_models" / delta_file]
    for tensors, path in zip((whole, delta), paths, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path)


@torch.no_grad()
def published_loop(
    base: Checkpoint, delta: dict[str, Tensor], prompts: list[str], guidance: float, noise: Tensor, steps: int
) -> Tensor:
    """The latents (1, 4, h, w), as the UNet takes them, that base + delta makes of that noise.

    Args:
        prompts: the positive and the negative one.
    """
    states = encode_prompts(build_text_encoder(base), prompts)
    weights = {name: weight.float() + delta[name].float() for name, weight in base.unet.items()}
    unet = build_unet(Checkpoint(weights, FEW_LAYERS))
    alphas, x = noise_schedule().alphas_cumprod, noise
    for level, after in pairwise(window_levels(steps, 4)):
        both = unet(x.expand(2, -1, -1, -1), 1000 * level, encoder_hidden_states=states, return_dict=False)[0]
        said = both[1:] + guidance * (both[:1] - both[1:])
        at = torch.full((1, 1, 1, 1), level)
        x = x + (after - level) * window_velocity(x, said, at, 4, alphas, "diff_eps")
    return x
