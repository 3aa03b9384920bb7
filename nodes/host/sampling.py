"""The host's samplers on a flow, and the latents and the noise they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

SAMPLERS: list[str] = comfy.samplers.KSampler.SAMPLERS
"""The names of the host's samplers."""


def host_noise(latent: dict[str, Any], seed: int) -> Tensor:
    """The noise KSampler draws for this latent and seed, from a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    return comfy.sample.prepare_noise_inner(latent["samples"], generator, latent.get("batch_index"))


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put torch's own random state, the CPU's and every accelerator's, back as it was.

    `torch.manual_seed` seeds them all, and `torch.random.fork_rng` keeps those it is told of.
    """
    kept: list[tuple[Callable[[Any], None], Any]] = [
        (kind.set_rng_state_all, kind.get_rng_state_all()) for kind in (torch.cuda, torch.xpu) if kind.is_initialized()
    ]
    if torch.backends.mps.is_available():
        kept.append((torch.mps.set_rng_state, torch.mps.get_rng_state()))
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            for put_back, state in kept:
                put_back(state)


def check_latent(model: Any, latent: dict[str, Any]) -> None:
    """Raise ValueError unless the latent has the (B, 4, H, W) shape the model takes."""
    shape, channels = tuple(latent["samples"].shape), model.get_model_object("latent_format").latent_channels
    if len(shape) != 4 or shape[1] != channels:
        raise ValueError(
            f"This LATENT has the shape {shape}; InstaFlow takes (batch, {channels}, height / 8, width / 8). "
            "Make it with Empty Latent Image, or with VAE Encode and InstaFlow's own VAE."
        )


def check_sampler(name: str) -> None:
    """Raise ValueError unless the host has a sampler of this name."""
    if name not in SAMPLERS:
        raise ValueError(f"There is no sampler {name!r}. Choose one of {', '.join(SAMPLERS)}.")


def with_samples(latent: dict[str, Any], samples: Tensor) -> dict[str, Any]:
    """The LATENT with other samples; a newer host's note on the scale of an empty latent no longer holds."""
    kept = {key: value for key, value in latent.items() if not key.startswith("downscale_ratio_")}
    return {**kept, "samples": samples}


def sample_euler(
    model: Any,
    conditioning: dict[str, Any],
    guidance: float,
    latent: dict[str, Any],
    noise: Tensor,
    sigmas: Tensor,
    seed: int,
) -> Tensor:
    """Euler's steps along the flow by the host's sampler, with its previews, interrupt, masks and memory management.

    Its step is x + (sigma_next - sigma) (x - denoised) / sigma. With `InstaFlowSampling`'s denoised = x + sigma v (the
    equation is `convention.denoised_from_velocity`) and sigma = 1 - t that is the paper's x + (t_next - t) v.

    Args:
        conditioning: {"positive": ...} and, for guidance above 1, {"negative": ...}.
        noise: (B, 4, H, W), N(0, 1).
        sigmas: falling noise levels; none at all returns the latent as it is.
    """
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds(conditioning)
    guider.set_cfg(guidance)
    with random_state_kept():
        # Patches on the MODEL may draw from torch's own random state; KSampler leaves it as its drawing of noise did.
        comfy.sample.prepare_noise(latent["samples"], seed, latent.get("batch_index"))
        samples = guider.sample(
            noise,
            latent["samples"],
            comfy.samplers.sampler_object("euler"),
            sigmas,
            denoise_mask=latent.get("noise_mask"),
            callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
    return samples.to(comfy.model_management.intermediate_device())


def sample_as_ksampler(
    model: Any, conditioning: dict[str, Any], cfg: float, noise: Tensor, steps: int, sampler: str, seed: int
) -> Tensor:
    """What KSampler makes of this noise (B, 4, H, W) with the scheduler "normal", whose timesteps are even.

    Args:
        conditioning: {"positive": ..., "negative": ...}.
        sampler: one of SAMPLERS.
    """
    return comfy.sample.sample(
        model,
        noise,
        steps,
        cfg,
        sampler,
        "normal",
        conditioning["positive"],
        conditioning["negative"],
        torch.zeros_like(noise),
        callback=latent_preview.prepare_callback(model, steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )


def into_flow(model: Any, samples: Tensor) -> Tensor:
    """A LATENT's samples as the UNet takes them."""
    return model.get_model_object("latent_format").process_in(samples)


def out_of_flow(model: Any, x: Tensor) -> Tensor:
    """What the UNet's latents are in a LATENT, where the host keeps its latents between nodes."""
    return model.get_model_object("latent_format").process_out(x).to(comfy.model_management.intermediate_device())
