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

from .fitting import check_noise

SAMPLERS: list[str] = comfy.samplers.KSampler.SAMPLERS
"""The names of the host's samplers."""


def host_noise(latent: dict[str, Any], seed: int) -> Tensor:
    """The noise KSampler draws for this latent and seed, from a generator of its own."""
    return _drawn(latent, torch.Generator().manual_seed(seed))


def _drawn(latent: dict[str, Any], generator: torch.Generator) -> Tensor:
    return comfy.sample.prepare_noise_inner(latent["samples"], generator, latent.get("batch_index"))


def connected_noise(latent: dict[str, Any], seed: int, noise: Any = None) -> tuple[Tensor | None, int]:
    """The noise for a LATENT of the NOISE connected to `noise`, None where there is none; and the seed to sample with.

    Raises:
        ValueError: the NOISE gives none for such a LATENT.
    """
    if noise is None:
        return None, seed
    drawn = noise.generate_noise(latent)
    check_noise(drawn, latent)
    return drawn, noise.seed


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put torch's own random state, the CPU's and every accelerator's, back as it was.

    `torch.manual_seed` seeds them all, and `torch.random.fork_rng` keeps those it is told of.
    """
    kept: list[tuple[Callable[[Any], None], Any]] = [
        (kind.set_rng_state_all, kind.get_rng_state_all()) for kind in _accelerators()
    ]
    if torch.backends.mps.is_available():
        kept.append((torch.mps.set_rng_state, torch.mps.get_rng_state()))
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            for put_back, state in kept:
                put_back(state)


def _seeded_noise(latent: dict[str, Any], seed: int) -> Tensor:
    """The noise KSampler draws, and torch's own random state, on every device, as its drawing leaves it.

    Without `torch.manual_seed`, which for every accelerator that is not in use writes down the whole call stack: half a
    millisecond, and a list that grows with each picture.
    """
    for kind in _accelerators():
        kind.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    return _drawn(latent, torch.default_generator.manual_seed(seed))


def _accelerators() -> list[Any]:
    """Those whose generators are in use; torch makes them when it first uses such a device."""
    return [kind for kind in (torch.cuda, torch.xpu) if kind.is_initialized()]


def with_samples(latent: dict[str, Any], samples: Tensor) -> dict[str, Any]:
    """The LATENT with other samples; a newer host's note on the scale of an empty latent no longer holds."""
    kept = {key: value for key, value in latent.items() if not key.startswith("downscale_ratio_")}
    return {**kept, "samples": samples}


def sample(
    model: Any,
    conditioning: dict[str, Any],
    guidance: float,
    latent: dict[str, Any],
    noise: Tensor | None,
    sigmas: Tensor,
    seed: int,
    sampler: str = "euler",
) -> Tensor:
    """Steps by the host's sampler, with its previews, interrupt, masks and memory management.

    Its Euler step is x + (sigma_next - sigma) (x - denoised) / sigma. With `InstaFlowSampling`'s denoised = x + sigma v
    (the equation is `convention.denoised_from_velocity`) and sigma = 1 - t that is the paper's x + (t_next - t) v.

    Args:
        conditioning: {"positive": ...} and, for guidance above 1, {"negative": ...}.
        noise: (B, 4, H, W), N(0, 1); None for what KSampler draws for the seed.
        sigmas: falling noise levels; none at all returns the latent as it is.
        sampler: one of SAMPLERS.

    Raises:
        ValueError: what the MODEL makes is not finite.
    """
    guider, mask = comfy.samplers.CFGGuider(model), latent.get("noise_mask")
    guider.inner_set_conds(conditioning)
    guider.set_cfg(guidance)
    with random_state_kept():
        # Also where its noise is not used: patches on the MODEL may draw from the random state that this leaves.
        drawn = _seeded_noise(latent, seed)
        samples = guider.sample(
            drawn if noise is None else noise,
            latent["samples"],
            comfy.samplers.sampler_object(sampler),
            sigmas,
            denoise_mask=None if mask is None else mask.float(),  # hosts cannot resize one of true and false
            callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
    check_result(samples)
    return samples.to(comfy.model_management.intermediate_device())


def check_result(samples: Tensor) -> None:
    """Raise ValueError for latents that are not finite: they decode to a black picture that says nothing."""
    if not samples.isfinite().all():
        raise ValueError(
            "What `model` makes of these inputs is not finite (NaN or infinity). Load it with weight_dtype bf16 or "
            "fp32, lower the strength of what is merged into it (LoRA, delta), or look at a ControlNet's strength."
        )


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
