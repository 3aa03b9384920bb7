"""A few-step diffusion model as the host's `model_sampling`, by its row of `rules`."""

from __future__ import annotations

from typing import Any

import comfy.model_sampling
import torch
from torch import Tensor

from ...instaflow_core.flow.few_step import FewStep
from ...instaflow_core.rules import Diffusion, Rule

_LEAST_LEVEL = 1e-3
"""Stands for level 0 among the levels to choose from: the host takes their logarithms. No step begins there."""


class FewStepSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """The row's levels and timesteps for the host's schedulers, and its equations for the host's samplers: one step of
    any solver goes where the row's authors go.

    Attributes:
        rule: the row.
        stage: as in `InstaFlowSampling`.
    """

    def __init__(self, rule: Rule, equations: Diffusion) -> None:
        super().__init__()
        self.rule, self.stage, self._step = rule, rule.stage, FewStep(equations)
        self.set_sigmas(self._step.levels.clamp(min=_LEAST_LEVEL))

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Keep the schedule as a plain attribute: a host that saves and restores buffers leaks them to clones."""
        setattr(self, name, tensor)

    def timestep(self, sigma: Tensor) -> Tensor:
        """The timestep whose level is nearest."""
        timesteps = self._step.timesteps
        distance = (sigma.log().to(self.log_sigmas.device) - self.log_sigmas[:, None]).abs()
        return timesteps[distance.argmin(dim=0)].view(sigma.shape).to(sigma.device)

    def sigma(self, timestep: Tensor) -> Tensor:
        """The level at a timestep, between two of the row's as the host has it between two of its own."""
        first, stride = self._step.timesteps[0].item(), self._step.row.stride
        return super().sigma((timestep.float() - first) / stride)

    def calculate_input(self, sigma: Tensor, noise: Tensor) -> Tensor:
        return self._step.unet_state(noise, sigma)

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        return self._step.denoised(model_input, model_output, sigma, self.timestep(sigma))

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False) -> Tensor:
        if max_denoise:
            return latent_image + self._step.start(noise)
        return self._step.noised(latent_image, noise, sigma)

    def steps(self, steps: int, denoise: float) -> Tensor:
        """The levels of so many steps and 0, as KSampler has them with the scheduler "simple".

        Returns:
            (steps + 1,) float32; (0,) for denoise 0.

        Raises:
            ValueError: there are fewer timesteps.
        """
        return last_steps(lambda count: self.sigmas[self._step.trailing(count)], steps, denoise)


def last_steps(levels: Any, steps: int, denoise: float) -> Tensor:
    """The last of levels(n), where n is as many as make them the share `denoise` of all, and 0 after them: KSampler's
    rule."""
    if denoise <= 0:
        return torch.empty(0)
    taken = levels(max(steps, int(steps / denoise)))[-steps:]
    return torch.cat([taken, taken.new_zeros(1)])
