"""A Stable Diffusion teacher: its training loss, and (prompt, noise) -> latent through DPM-Solver++."""

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


def teacher_loss(unet: Any, schedule: Any, x_1: Tensor, noise: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
    """|| noise - eps(x_t, t | text) ||^2 as a mean, the loss Stable Diffusion was trained with.

    Args:
        x_1: data latents (B, C, H, W); noise: the same shape.
        timesteps: (B,) integers in [0, 1000); states: (B, 77, width).
    """
    noisy = schedule.add_noise(x_1, noise, timesteps)
    return (unet(noisy, timesteps, encoder_hidden_states=states, return_dict=False)[0] - noise).square().mean()


class GuidedNoise:
    """A teacher's noise prediction with guidance: eps_neg + g (eps_text - eps_neg).

    Args:
        text_states, negative_states: (B, 77, width); (1, 77, width) serves a whole batch.
        guidance: 1.0 asks for the text alone.
    """

    def __init__(self, unet: Any, text_states: Tensor, negative_states: Tensor, guidance: float) -> None:
        self.unet, self.guidance = unet, guidance
        self.text_states, self.negative_states = text_states, negative_states

    def __call__(self, x: Tensor, timestep: int | Tensor) -> Tensor:
        """The noise in x (B, C, H, W) at this timestep, 0 to 999."""
        text = self.text_states.expand(len(x), -1, -1)
        if self.guidance == 1:
            return self.unet(x, timestep, encoder_hidden_states=text, return_dict=False)[0]
        both = torch.cat([self.negative_states.expand(len(x), -1, -1), text])
        pair = self.unet(torch.cat([x, x]), timestep, encoder_hidden_states=both, return_dict=False)[0]
        negative, positive = pair.chunk(2)
        return negative + self.guidance * (positive - negative)


@torch.no_grad()
def sample_teacher(
    unet: Any,
    text_states: Tensor,
    negative_states: Tensor,
    noise: Tensor,
    steps: int = 25,
    guidance: float = 5.0,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """The teacher's latents for these prompts and this noise, by second-order DPM-Solver++ (section 4.1).

    Args:
        text_states, negative_states: (B, 77, width); (1, 77, width) serves a whole batch.
        noise: (B, C, H, W), N(0, 1).
        guidance: on predictions, eps_neg + g (eps_text - eps_neg); 1.0 asks for the text alone.
        callback: called after step i with (i, latents); may raise to cancel.

    Returns:
        Latents of the shape of noise, scaled as the VAE's latents times LATENT_SCALE.
    """
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(**SD_SCHEDULE, algorithm_type="dpmsolver++", solver_order=2)
    scheduler.set_timesteps(steps, device=noise.device)
    predict = GuidedNoise(unet, text_states, negative_states, guidance)
    x = noise * scheduler.init_noise_sigma
    for i, timestep in enumerate(scheduler.timesteps):
        x = scheduler.step(predict(x, timestep), timestep, x, return_dict=False)[0]
        if callback:
            callback(i, x)
    return x
