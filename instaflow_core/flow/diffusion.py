"""Stable Diffusion as the teacher: its noise schedule, its training loss, and its solver."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SD_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
"""Stable Diffusion 1's noise schedule, as its released configuration says it."""


def noise_schedule() -> Any:
    """SD's forward process as diffusers' DDPMScheduler: add_noise and alphas_cumprod."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(**SD_SCHEDULE)


def diffusion_loss(unet: Any, schedule: Any, x_1: Tensor, noise: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
    """|| noise - eps(x_t, t | text) ||^2 as a mean, the loss Stable Diffusion was trained with.

    Args:
        x_1: data latents (B, C, H, W); noise: the same shape.
        timesteps: (B,) integers in [0, 1000); states: (B, 77, width).
    """
    noisy = schedule.add_noise(x_1, noise, timesteps)
    return (unet(noisy, timesteps, encoder_hidden_states=states, return_dict=False)[0] - noise).square().mean()


@torch.no_grad()
def dpm_solver(
    predict_noise: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    steps: int,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Second-order DPM-Solver++, by which the paper's teacher goes from noise to latents (section 4.1).

    Args:
        predict_noise: from (B, C, H, W) and a timestep of 0 to 999 to the noise in it.
        x: (B, C, H, W), N(0, 1).
        callback: called after step i with (i, latents); may raise to cancel.

    Returns:
        Latents of the shape of x, as the UNet takes them.
    """
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(**SD_SCHEDULE, algorithm_type="dpmsolver++", solver_order=2)
    scheduler.set_timesteps(steps, device=x.device)
    x = x * scheduler.init_noise_sigma
    for i, timestep in enumerate(scheduler.timesteps):
        x = scheduler.step(predict_noise(x, timestep), timestep, x, return_dict=False)[0]
        if callback:
            callback(i, x)
    return x
