"""A flow as the host samples it: its `model_sampling`, its samplers, and work in a sampler's place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.supported_models
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ...instaflow_core.flow import convention
from ...instaflow_core.flow.solvers import VelocityField, time_grid

SAMPLERS: list[str] = comfy.samplers.KSampler.SAMPLERS
"""The names of the host's samplers."""


# --- The flow as the host's model_sampling ---------------------------------------------------------------------------


class FlowSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """A flow as the host's `model_sampling`: noise levels sigma = 1 - t in [0, 1], the UNet asked at 1000 sigma.

    Attributes:
        sigmas: the 1000 levels 1/1000 .. 1 the host's schedulers choose from, float32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sigmas = uniform_sigmas(1000).flip(0)[1:]

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Keep the schedule as a plain attribute: a host that saves and restores buffers leaks them to clones."""
        setattr(self, name, tensor)

    def timestep(self, sigma: Tensor) -> Tensor:
        """1000 sigma, as a float: unet_time(1 - sigma) without the rounding of 1 - sigma."""
        return convention.unet_time(0.0) * sigma

    def sigma(self, timestep: float | Tensor) -> float | Tensor:
        return convention.sigma_from_time(convention.time_from_unet(timestep))


class InstaFlowSampling(FlowSampling):
    """InstaFlow as the host's `model_sampling`.

    A host flow model predicts noise minus data; InstaFlow predicts the velocity, data minus noise, so only
    `calculate_denoised` differs from CONST.

    Attributes:
        stage: what the checkpoint says of itself, such as "one-step", or "unknown".
    """

    def __init__(self, stage: str = "unknown") -> None:
        super().__init__()
        self.stage = stage

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        return convention.denoised_from_velocity(model_input, model_output, sigma)

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False) -> Tensor:
        return convention.interpolate(noise, latent_image, convention.time_from_sigma(sigma))


def uniform_sigmas(steps: int) -> Tensor:
    """The exact grid 1 - i / steps, i = 0..steps, as (steps + 1,) float32 from 1.0 down to 0.0.

    Raises:
        ValueError: steps is below 1.
    """
    return torch.as_tensor(convention.sigma_from_time(time_grid(steps)), dtype=torch.float32)


def as_instaflow(model: Any) -> Any:
    """A clone of an SD1.5-shaped MODEL whose UNet's output is taken as InstaFlow's velocity.

    Raises:
        ValueError: the MODEL is of another architecture.
    """
    check_sd15(model)
    patched = model.clone()
    patched.add_object_patch("model_sampling", InstaFlowSampling())
    return patched


def check_sd15(model: Any) -> None:
    """Raise ValueError unless the MODEL has Stable Diffusion 1.5's shape, in any width."""
    config = model.model.model_config
    if not isinstance(config, comfy.supported_models.SD15):
        raise ValueError(
            f"This MODEL is a {type(config).__name__}; InstaFlow has the shape of Stable Diffusion 1.5. "
            "Connect a Stable Diffusion 1.5 MODEL that holds InstaFlow's weights."
        )


def instaflow_sampling(model: Any) -> InstaFlowSampling:
    """The flow of an InstaFlow MODEL.

    Raises:
        ValueError: the MODEL is not an InstaFlow.
    """
    sampling = model.get_model_object("model_sampling")
    if not isinstance(sampling, InstaFlowSampling):
        kinds = " + ".join(kind.__name__ for kind in type(sampling).__bases__)
        raise ValueError(
            f"This MODEL is not an InstaFlow: the host samples it as {kinds}. Load an InstaFlow with InstaFlow Load "
            "Checkpoint, or send a MODEL that holds InstaFlow's weights through InstaFlow Model Sampling. "
            "An ordinary diffusion model, such as `built-in: shapes-teacher`, is sampled with KSampler."
        )
    return sampling


# --- Sampling --------------------------------------------------------------------------------------------------------


def host_noise(latent: dict[str, Any], seed: int) -> Tensor:
    """The noise KSampler draws for this latent and seed, leaving torch's own random state as it was."""
    with torch.random.fork_rng(devices=[]):
        return comfy.sample.prepare_noise(latent["samples"], seed, latent.get("batch_index"))


def check_latent(model: Any, latent: dict[str, Any]) -> None:
    """Raise ValueError unless the latent has the (B, 4, H, W) shape the model takes."""
    shape, channels = tuple(latent["samples"].shape), model.get_model_object("latent_format").latent_channels
    if len(shape) != 4 or shape[1] != channels:
        raise ValueError(
            f"This LATENT has the shape {shape}; InstaFlow takes (batch, {channels}, height / 8, width / 8). "
            "Make it with Empty Latent Image, or with VAE Encode and InstaFlow's own VAE."
        )


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
    """The host's Euler sampler, with its previews, interrupt, masks and memory management.

    Args:
        conditioning: {"positive": ...} and, for guidance above 1, {"negative": ...}.
        noise: (B, 4, H, W), N(0, 1).
        sigmas: falling noise levels; none at all returns the latent as it is.
    """
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds(conditioning)
    guider.set_cfg(guidance)
    with torch.random.fork_rng(devices=[]):
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


def with_velocity(model: Any, positive: Any, x: Tensor, work: Callable[[VelocityField, Tensor], Any]) -> Any:
    """work(velocity, x), run where the host would run a sampler: with its memory management, patches and ControlNets.

    Args:
        x: (B, 4, H, W) latents as the UNet takes them; `work` gets them on the MODEL's device.
        work: gets the MODEL's flow for this conditioning as velocity(x, t), t in [0, 1) (the host's denoised says
            nothing of a velocity at t = 1). An interrupt is raised out of it.
    """
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    runner = _Work(work)
    guider.sample(x, torch.zeros_like(x), runner, uniform_sigmas(1), disable_pbar=True, seed=0)
    return runner.result


class _Work(comfy.samplers.Sampler):
    """A function of the velocity in the place of a sampler. result: what it returned."""

    def __init__(self, work: Callable[[VelocityField, Tensor], Any]) -> None:
        self.work = work
        self.result: Any = None

    def sample(
        self, model_wrap: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, noise: Tensor, *_: Any
    ) -> Tensor:
        def velocity(x: Tensor, t: float) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            levels = torch.full((len(x),), float(convention.sigma_from_time(t)), device=x.device)
            return convention.velocity_from_denoised(x, model_wrap(x, levels, **extra_args), levels)

        self.result = self.work(velocity, noise)
        return noise


def into_flow(model: Any, samples: Tensor) -> Tensor:
    """A LATENT's samples as the UNet takes them."""
    return model.get_model_object("latent_format").process_in(samples)


def out_of_flow(model: Any, x: Tensor) -> Tensor:
    """What the UNet's latents are in a LATENT, where the host keeps its latents between nodes."""
    return model.get_model_object("latent_format").process_out(x).to(comfy.model_management.intermediate_device())


def progress(total: int) -> Callable[[], None]:
    """A progress bar of the running node: call it once for each of `total` parts of the work."""
    bar = comfy.utils.ProgressBar(total)
    return lambda: bar.update(1)
