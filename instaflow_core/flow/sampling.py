"""Noise to latents, by the solver that suits what a UNet predicts."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .diffusion import dpm_solver
from .guidance import GuidedUNet
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
) -> Tensor:
    """Latents (B, C, H, W) from noise of that shape: Euler's method for "velocity", DPM-Solver++ for "epsilon" and
    "v".

    text, negative: (B, 77, width) states; (1, 77, width) serves a whole batch.
    zero_snr: for "v", as in `dpm_solver`.
    """
    guided = GuidedUNet(unet, text, negative, guidance)
    if prediction == "velocity":
        return euler(guided.velocity, noise, time_grid(steps), callback)
    return dpm_solver(guided, noise, steps, callback, prediction, zero_snr)
