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
from ...instaflow_core.flow.solvers import VelocityField
from .gradients import attention_checked, with_gradients
from .model_sampling import uniform_sigmas


def with_velocity(
    model: Any,
    conditioning: dict[str, Any],
    guidance: float,
    x: Tensor,
    work: Callable[[VelocityField, Tensor], Any],
    gradients: bool = False,
) -> Any:
    """work(velocity, x), run where the host would run a sampler: with its memory management, patches and ControlNets.

    Args:
        conditioning: {"positive": ...} and, for guidance above 1, {"negative": ...}.
        guidance: acts on velocities, above 1.
        x: (B, 4, H, W) latents as the UNet takes them; `work` gets them on the MODEL's device.
        work: gets the MODEL's flow for this conditioning as velocity(x, t), t in [0, 1) (the host's denoised says
            nothing of a velocity at t = 1). An interrupt is raised out of it.
        gradients: whether `work` takes the velocity's gradients.

    Raises:
        ValueError: gradients are wanted, and none goes through the MODEL's attention.
    """
    taken = with_gradients(model) if gradients else model
    guider = comfy.samplers.CFGGuider(taken)
    guider.inner_set_conds(conditioning)
    guider.set_cfg(max(guidance, 1.0))
    runner = _Work(work)
    with attention_checked(taken) if gradients else nullcontext():
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
