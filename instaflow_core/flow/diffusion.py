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


def noise_schedule(zero_snr: bool = False) -> Any:
    """SD's forward process as diffusers' DDPMScheduler: add_noise and alphas_cumprod.

    zero_snr: rescaled so that the last state is nothing but noise (Lin et al. 2024, algorithm 1).
    """
    from diffusers import DDPMScheduler

    return DDPMScheduler(**SD_SCHEDULE, rescale_betas_zero_snr=zero_snr)


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


def check_zero_snr(prediction: str, zero_snr: bool) -> None:
    """Raise ValueError for a schedule of zero terminal SNR that is to be sampled from a prediction of the noise: where
    all is noise, that says nothing of the data."""
    if zero_snr and prediction != "v":
        raise ValueError(
            f"This model says that its noise schedule ends in zero terminal SNR, and predicts {prediction}, from which "
            "such a schedule cannot be sampled. Say --prediction v if that is what it predicts; else take "
            "rescale_betas_zero_snr out of its scheduler_config.json."
        )


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
    zero_snr: bool = False,
) -> Tensor:
    """Second-order DPM-Solver++, by which the paper's teacher goes from noise to latents (section 4.1).

    Args:
        predict: from (B, C, H, W) and a timestep of 0 to 999 to what the model predicts of it.
        x: (B, C, H, W), N(0, 1).
        callback: called after step i with (i, latents); may raise to cancel.
        prediction: "epsilon", the noise in x, or "v", which is alpha noise - sigma data where x = alpha data + sigma
            noise (Salimans and Ho 2022).
        zero_snr: for "v", whether the model learned on the schedule of `noise_schedule(zero_snr=True)`; the steps then
            begin where all is noise (timesteps "trailing", as Lin et al. 2024 say).

    Returns:
        Latents of the shape of x, as the UNet takes them.

    Raises:
        ValueError: as `check_zero_snr`.
    """
    from diffusers import DPMSolverMultistepScheduler

    check_zero_snr(prediction, zero_snr)
    options = {"algorithm_type": "dpmsolver++", "solver_order": 2, "prediction_type": _PREDICTION_TYPES[prediction]}
    if zero_snr:
        options |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = DPMSolverMultistepScheduler(**SD_SCHEDULE, **options)
    scheduler.set_timesteps(steps, device=x.device)
    x = x * scheduler.init_noise_sigma
    for i, timestep in enumerate(scheduler.timesteps):
        x = scheduler.step(predict(x, timestep), timestep, x, return_dict=False)[0]
        if callback:
            callback(i, x)
    return x
