"""Noise to latents, by the solver that suits what a UNet predicts."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..rules import Rule
from .diffusion import dpm_solver, noise_schedule
from .few_step import FewStep, few_step_solver
from .guidance import GuidedUNet
from .perflow import perflow_solver, window_levels
from .solvers import euler, time_grid


def sample_latents(
    unet: Any,
    prediction: str,
    text: Tensor,
    negative: Tensor,
    noise: Tensor,
    steps: int,
    guidance: float,
    callback: Callable[[int, Tensor], None] | None = None,
    zero_snr: bool = False,
    rule: Rule | None = None,
) -> Tensor:
    """Latents (B, C, H, W) from noise of that shape: as the rule of a few-step model says, else by Euler's method for
    "velocity" and by DPM-Solver++ for "epsilon" and "v".

    text, negative: (B, 77, width) states; (1, 77, width) serves a whole batch.
    zero_snr: for "v", as in `dpm_solver`.
    """
    guided = GuidedUNet(unet, text, negative, guidance)
    if rule and rule.diffusion:
        return few_step_solver(guided, noise, steps, rule.diffusion, callback)
    if rule and rule.windows:
        return perflow_solver(guided, noise, steps, rule.windows, noise_schedule().alphas_cumprod, callback)
    if prediction == "velocity":
        return euler(guided.velocity, noise, time_grid(steps), callback)
    return dpm_solver(guided, noise, steps, callback, prediction, zero_snr)


def check_steps(rule: Rule | None, steps: int) -> None:
    """Raise ValueError where a model of this row cannot be sampled in so many steps, 1 or more."""
    if rule and rule.diffusion:
        FewStep(rule.diffusion).trailing(steps)
    if rule and rule.windows:
        window_levels(steps, rule.windows)
