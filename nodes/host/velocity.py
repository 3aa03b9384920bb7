"""A MODEL's flow as a velocity field, asked where the host would run a sampler."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ...instaflow_core.flow import convention
from ...instaflow_core.flow.diffusion import Predict, noise_schedule
from ...instaflow_core.flow.solvers import VelocityField
from .gradients import attention_checked, with_gradients
from .memory import FEWER_PICTURES, advising
from .model_sampling import uniform_sigmas


def with_velocity(
    model: Any,
    conditioning: dict[str, Any],
    guidance: float,
    x: Tensor,
    work: Callable[[VelocityField, Tensor], Any],
    gradients: bool = False,
    advice: str = FEWER_PICTURES,
) -> Any:
    """work(velocity, x), run where the host would run a sampler: with its memory management, patches and ControlNets.

    Args:
        conditioning: {"positive": ...} and, for guidance above 1, {"negative": ...}.
        guidance: acts on velocities, above 1.
        x: (B, 4, H, W) latents as the UNet takes them; `work` gets them on the MODEL's device.
        work: gets the MODEL's flow for this conditioning as velocity(x, t), t in [0, 1) (the host's denoised says
            nothing of a velocity at t = 1). An interrupt is raised out of it.
        gradients: whether `work` takes the velocity's gradients.
        advice: what to do where the memory does not suffice.

    Raises:
        ValueError: gradients are wanted, and none goes through the MODEL's attention.
    """
    taken = with_gradients(model) if gradients else model

    def asked(denoise: Callable[[Tensor, float], Tensor], noise: Tensor) -> Any:
        def velocity(x: Tensor, t: float) -> Tensor:
            level = float(convention.sigma_from_time(t))
            levels = torch.full((len(x),), level, device=x.device)
            return convention.velocity_from_denoised(x, denoise(x, level), levels)

        return work(velocity, noise)

    with attention_checked(taken) if gradients else nullcontext():
        return _run(taken, conditioning, guidance, x, asked, advice)


def with_noise_prediction(
    model: Any,
    conditioning: dict[str, Any],
    guidance: float,
    x: Tensor,
    work: Callable[[Predict, Tensor], Any],
    advice: str = FEWER_PICTURES,
) -> Any:
    """work(predict, x), as `with_velocity` does it for a flow: a diffusion MODEL's noise in x at a timestep, where x is
    alpha data + sigma noise and alpha^2 + sigma^2 = 1.

    Raises:
        ValueError: the MODEL's noise levels are not Stable Diffusion's.
    """
    levels, wanted = model.get_model_object("model_sampling").sigmas, noise_schedule().alphas_cumprod
    if not torch.allclose(levels.cpu(), ((1 - wanted) / wanted).sqrt(), rtol=1e-3):
        raise ValueError(
            "The diffusion MODEL has another noise schedule than Stable Diffusion's own. Take the node that changes it "
            "out, or connect another MODEL."
        )

    def asked(denoise: Callable[[Tensor, float], Tensor], noise: Tensor) -> Any:
        def predict(x: Tensor, timestep: Any) -> Tensor:
            level = float(levels[int(timestep)])
            # The host's x is data + level noise.
            hosts = x * (1 + level**2) ** 0.5
            return (hosts - denoise(hosts, level)) / level

        return work(predict, noise)

    return _run(model, conditioning, guidance, x, asked, advice)


def _run(
    model: Any, conditioning: dict[str, Any], guidance: float, x: Tensor, work: Callable[..., Any], advice: str
) -> Any:
    """work(denoise, x), with the MODEL's guided denoise(x, sigma)."""
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds(conditioning)
    guider.set_cfg(max(guidance, 1.0))
    runner, x = _Work(work), x.float()  # as the host's samplers have it, whatever type a LATENT is kept in
    with advising(advice):
        guider.sample(x, torch.zeros_like(x), runner, uniform_sigmas(1), disable_pbar=True, seed=0)
    return runner.result


class _Work(comfy.samplers.Sampler):
    """A function of the denoised latents in the place of a sampler. result: what it returned."""

    def __init__(self, work: Callable[[Callable[[Tensor, float], Tensor], Tensor], Any]) -> None:
        self.work = work
        self.result: Any = None

    def sample(
        self, model_wrap: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, noise: Tensor, *_: Any
    ) -> Tensor:
        def denoise(x: Tensor, sigma: float) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            return model_wrap(x, torch.full((len(x),), sigma, device=x.device), **extra_args)

        self.result = self.work(denoise, noise)
        return noise
