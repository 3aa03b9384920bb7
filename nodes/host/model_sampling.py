"""A flow as the host's `model_sampling`: what its samplers take a UNet's noise levels and its output for."""

from __future__ import annotations

from typing import Any

import comfy.model_sampling
import comfy.supported_models
import torch
from torch import Tensor

from ...instaflow_core.flow import convention
from ...instaflow_core.flow.solvers import time_grid


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

    A host flow model predicts noise minus data; InstaFlow predicts the velocity v, data minus noise, so only
    `calculate_denoised` differs from CONST: x + sigma v, where the host's own flows have x - sigma v.

    Attributes:
        stage: what the checkpoint says of itself, such as "one-step", or "unknown".
    """

    def __init__(self, stage: str = "unknown") -> None:
        super().__init__()
        self.stage = stage

    def steps(self, steps: int, denoise: float) -> Tensor:
        """As `uniform_sigmas`."""
        return uniform_sigmas(steps, denoise)

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        return convention.denoised_from_velocity(model_input, model_output, sigma)

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False) -> Tensor:
        return convention.interpolate(noise, latent_image, convention.time_from_sigma(sigma))


def uniform_sigmas(steps: int, denoise: float = 1.0) -> Tensor:
    """The grid of even steps from sigma = denoise down to 0, exact: denoise (1 - i / steps), i = 0..steps.

    Args:
        denoise: where the path starts, t = 1 - denoise: 1 for the whole way from noise, 0 for no steps at all.

    Returns:
        (steps + 1,) float32; (0,) for denoise 0.

    Raises:
        ValueError: steps is below 1.
    """
    sigmas = denoise * torch.as_tensor(convention.sigma_from_time(time_grid(steps)))
    return sigmas.float() if denoise > 0 else torch.empty(0)


def as_instaflow(model: Any) -> Any:
    """A clone of an SD1.5-shaped MODEL whose UNet's output is taken as InstaFlow's velocity; its stage, if any, stays.

    Raises:
        ValueError: the MODEL is of another architecture.
    """
    check_sd15(model)
    patched = model.clone()
    stage = getattr(model.get_model_object("model_sampling"), "stage", "unknown")
    patched.add_object_patch("model_sampling", InstaFlowSampling(stage))
    return patched


def check_sd15(
    model: Any,
    advice: str = "Connect a Stable Diffusion 1.5 MODEL that holds InstaFlow's weights.",
    name: str = "model",
) -> None:
    """Raise ValueError, with the advice, unless the MODEL of this input has SD1.5's shape, in any width."""
    config = model.model.model_config
    if not isinstance(config, comfy.supported_models.SD15):
        raise ValueError(
            f"`{name}` is a {type(config).__name__}; InstaFlow has the shape of Stable Diffusion 1.5. {advice}"
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
            f"`model` is not an InstaFlow: the host samples it as {kinds}. Load an InstaFlow with InstaFlow Load "
            "Checkpoint, or send a MODEL that holds InstaFlow's weights through InstaFlow Model Sampling. "
            "An ordinary diffusion model, such as `built-in: shapes-teacher`, is sampled with KSampler."
        )
    return sampling
