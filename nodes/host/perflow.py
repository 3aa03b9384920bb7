"""PeRFlow as the host's `model_sampling`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...instaflow_core.flow.perflow import window_levels, window_velocity
from ...instaflow_core.rules import Rule
from .few_step import last_steps
from .model_sampling import FlowSampling, check_sd15


class PeRFlowSampling(FlowSampling):
    """Noise levels from 1 to 0, the UNet asked at 1000 times the level for its noise, and the window's velocity made of
    it.

    Attributes:
        windows, prediction: as in `instaflow_core.perflow`.
        alphas_cumprod: (1000,), Stable Diffusion's schedule.
        rule: the row of a checkpoint that is sampled so by itself; None where a node made it so.
        stage: as in `InstaFlowSampling`.
    """

    stage = "few-step"

    def __init__(self, windows: int, prediction: str, alphas_cumprod: Tensor, rule: Rule | None = None) -> None:
        super().__init__()
        self.windows, self.prediction, self.alphas_cumprod, self.rule = windows, prediction, alphas_cumprod, rule

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        level = sigma.view(sigma.shape[:1] + (1,) * (model_input.ndim - 1))
        velocity = window_velocity(
            model_input, model_output, level, self.windows, self.alphas_cumprod, self.prediction
        )  # fmt: skip
        return model_input - level * velocity

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False) -> Tensor:
        """Stable Diffusion's noising at this level; pure noise at level 1."""
        level = float(sigma.max())
        if max_denoise or level >= 1:
            return noise
        alpha = self.alphas_cumprod[max(0, round(1000 * level) - 1)].to(noise.device)
        return alpha.sqrt() * latent_image + (1 - alpha).sqrt() * noise

    def steps(self, steps: int, denoise: float) -> Tensor:
        """The levels of so many steps, shared out to the windows, and 0; of part of the way as KSampler has it.

        Returns:
            (steps + 1,) float32; (0,) for denoise 0.

        Raises:
            ValueError: there are fewer steps than windows.
        """
        return last_steps(lambda count: torch.tensor(window_levels(count, self.windows)[:-1]), steps, denoise)


def perflow_of(rule: Rule) -> PeRFlowSampling:
    """The sampling of a row with windows."""
    from ...instaflow_core.flow.diffusion import noise_schedule

    return PeRFlowSampling(rule.windows, "diff_eps", noise_schedule().alphas_cumprod.float(), rule)


def as_perflow(model: Any, steps: int, windows: int, prediction: str) -> tuple[Any, Tensor]:
    """A clone of an SD1.5-shaped MODEL that is sampled as a PeRFlow, and its SIGMAS.

    Raises:
        ValueError: the MODEL is of another architecture, or there are fewer steps than windows.
    """
    from ...instaflow_core.flow.diffusion import noise_schedule

    check_sd15(model)
    levels = window_levels(steps, windows)
    patched = model.clone()
    perflow = PeRFlowSampling(windows, prediction, noise_schedule().alphas_cumprod.float())
    patched.add_object_patch("model_sampling", perflow)
    return patched, torch.tensor(levels)
