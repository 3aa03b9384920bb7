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

_PREDICTION_TYPES = {"epsilon": "epsilon", "v": "v_prediction"}


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


Predict = Callable[[Tensor, Any], Tensor]
"""predict(x, timestep): what a diffusion model makes of its state x (B, C, H, W) at a timestep 0..999."""


def noise_prediction(predict: Predict, prediction: str) -> Predict:
    """The same model's prediction of the noise in x.

    Args:
        prediction: "epsilon", or "v", of which the noise is alpha v + sigma x (as in `dpm_solver`).
    """
    if prediction == "epsilon":
        return predict
    signal = noise_schedule().alphas_cumprod

    def predict_noise(x: Tensor, timestep: Any) -> Tensor:
        kept = signal[int(timestep)].item()
        return kept**0.5 * predict(x, timestep) + (1 - kept) ** 0.5 * x

    return predict_noise


@torch.no_grad()
def dpm_solver(
    predict: Predict,
    x: Tensor,
    steps: int,
    callback: Callable[[int, Tensor], None] | None = None,
    prediction: str = "epsilon",
) -> Tensor:
    """Second-order DPM-Solver++, by which the paper's teacher goes from noise to latents (section 4.1).

    Args:
        predict: from (B, C, H, W) and a timestep of 0 to 999 to what the model predicts of it.
        x: (B, C, H, W), N(0, 1).
        callback: called after step i with (i, latents); may raise to cancel.
        prediction: "epsilon", the noise in x, or "v", which is alpha noise - sigma data where x = alpha data + sigma
            noise (Salimans and Ho 2022).

    Returns:
        Latents of the shape of x, as the UNet takes them.
    """
    from diffusers import DPMSolverMultistepScheduler

    options = {"algorithm_type": "dpmsolver++", "solver_order": 2, "prediction_type": _PREDICTION_TYPES[prediction]}
    scheduler = DPMSolverMultistepScheduler(**SD_SCHEDULE, **options)
    scheduler.set_timesteps(steps, device=x.device)
    x = x * scheduler.init_noise_sigma
    for i, timestep in enumerate(scheduler.timesteps):
        x = scheduler.step(predict(x, timestep), timestep, x, return_dict=False)[0]
        if callback:
            callback(i, x)
    return x
