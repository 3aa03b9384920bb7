"""TAESD's two files, NAME_encoder.safetensors and NAME_decoder.safetensors, as ComfyUI finds them in models/vae_approx.

The names in them are those of a `torch.nn.Sequential`, `0.weight`, `1.conv.0.weight` and so on. The host gives TAESD
latents as the UNet has them, about N(0, 1), and pictures from 0 to 1.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from .checkpoint import Checkpoint
from .configs import TINY_VAE_CONFIG
from .errors import FormatError
from .files import Config, Weights
from .layouts import tiny_rows
from .matching import to_ldm
from .saving import cast

DOWNSCALE = 8
"""Pixels to one of its latents, along each side."""
_DECODER = "_decoder.safetensors"


def taesd_config(checkpoint: Checkpoint) -> Config:
    """diffusers' config of a TAESD, in the only shape that the host builds, in the place of a checkpoint's VAE.

    Raises FormatError where the VAE is of another scale, which no TAESD has.
    """
    if checkpoint.vae_config and checkpoint.latent_downscale != DOWNSCALE:
        raise FormatError(
            f"The VAE makes {checkpoint.latent_downscale} pixels of a latent, along each side",
            f"{DOWNSCALE}, as Stable Diffusion 1.5's; ComfyUI builds no TAESD of another scale",
            "Take a model whose VAE has that.",
        )
    return TINY_VAE_CONFIG | {"latent_channels": (checkpoint.vae_config or {}).get("latent_channels", 4)}


def encoder_beside(decoder: Path) -> Path:
    """The encoder's file beside a decoder's; FormatError where that is not called NAME_decoder.safetensors."""
    if not decoder.name.endswith(_DECODER):
        raise FormatError(
            f"The decoder is to be called {decoder.name}",
            f"NAME{_DECODER}; `taesd{_DECODER}` in ComfyUI's models/vae_approx is what its own nodes find",
            "Change the name.",
        )
    return decoder.with_name(decoder.name.removesuffix(_DECODER) + "_encoder.safetensors")


def taesd_half(tensors: Mapping[str, torch.Tensor], half: str, config: Config, dtype: torch.dtype) -> Weights:
    """The tensors of a file.

    Args:
        tensors: with the names of diffusers' AutoencoderTiny.
        half: "encoder" or "decoder".
    """
    start = f"taesd_{half}."
    named = to_ldm(tensors, [row for row in tiny_rows(config) if row.ldm.startswith(start)], "")
    return cast({name.removeprefix(start): tensor for name, tensor in named.items()}, dtype)
