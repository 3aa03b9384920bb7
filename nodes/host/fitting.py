"""Inputs of a node that have to fit each other: latents, prompts, CLIP and VAE their MODEL, a noise its latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .inputs import refused

_PARTS_ADVICE = "Connect those the model came with, or Stable Diffusion 1.5's."


def check_latent(name: str, latent: dict[str, Any], model: Any) -> None:
    """Raise ValueError unless the latents (B, C, H, W) have the channels the MODEL takes."""
    shape, channels = tuple(latent["samples"].shape), model.get_model_object("latent_format").latent_channels
    if shape[1] != channels:
        raise refused(
            name,
            f"has the shape {shape}",
            f"InstaFlow takes (batch, {channels}, height / 8, width / 8)",
            "Make it with Empty Latent Image, or with VAE Encode and InstaFlow's own VAE.",
        )


def check_prompt(name: str, conditioning: Any, model: Any, of: str = "model") -> None:
    """Raise ValueError unless every prompt of a conditioning is as wide as the MODEL reads them.

    Args:
        of: the name of the MODEL's input.
    """
    width = model.model.model_config.unet_config["context_dim"]
    found = {states.shape[-1] for states, _ in conditioning} - {width}
    if found:
        raise refused(
            name,
            f"comes from a text encoder {min(found)} wide",
            f"`{of}` reads prompts {width} wide",
            "Encode the prompt with the CLIP that came with that MODEL.",
        )


def check_clip(name: str, clip: Any, model: Any) -> None:
    """Raise ValueError for a CLIP, of the input of that name, that cannot be in one checkpoint with this MODEL."""
    width = model.model.model_config.unet_config["context_dim"]
    weights = clip.cond_stage_model.state_dict()
    tokens = weights.get("clip_l.transformer.text_model.embeddings.token_embedding.weight", torch.empty(0, 0))
    if tokens.shape[1] != width or not all(key.startswith("clip_l.") for key in weights):
        raise refused(
            name,
            f"reads texts with a {type(clip.cond_stage_model).__name__} {tokens.shape[1]} wide",
            f"`model` reads one CLIP-L {width} wide",
            _PARTS_ADVICE,
        )


def check_vae(vae: Any, model: Any) -> None:
    """Raise ValueError unless a VAE's latents are pictures' and have the channels of the MODEL's."""
    channels = model.get_model_object("latent_format").latent_channels
    if (vae.latent_channels, vae.latent_dim) != (channels, 2):
        kind = {1: "sounds", 2: "pictures", 3: "videos"}.get(vae.latent_dim, "another kind")
        raise refused(
            "vae",
            f"makes latents of {kind} with {vae.latent_channels} channels",
            f"`model` makes those of pictures with {channels} channels",
            _PARTS_ADVICE,
        )


def check_noise(noise: Tensor, latent: dict[str, Any]) -> None:
    """Raise ValueError unless what the NOISE at `noise` gave for a LATENT is finite numbers of its shape."""
    wanted, found = tuple(latent["samples"].shape), tuple(getattr(noise, "shape", ()))
    if found != wanted or not noise.isfinite().all():
        raise refused(
            "noise",
            f"gave noise of the shape {found}" + (" that is not finite" if found == wanted else ""),
            f"`latent_image` has the shape {wanted}",
            "Connect InstaFlow Seed Noise or RandomNoise, or nothing for the noise of the seed.",
        )
