"""PeRFlow (Yan et al., arXiv 2405.07510): a flow that is straight in each of a few windows of time.

Its time is a noise level, as the published scheduler has it: 1 is noise, 0 is data, and a window goes from its noisier
start down to its end. The UNet still predicts noise; from that and the window's two ends follows the velocity.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

PREDICTIONS = ("diff_eps", "ddim_eps")
"""What the UNet's output stands for: the noise added between the window's ends, or Stable Diffusion's own noise."""

_TIMESTEPS = 1000


def window_levels(steps: int, windows: int) -> list[float]:
    """The noise levels of `steps` steps, as equally shared out to the windows as they can be, and 0 at the end.

    Each level is a whole timestep over 1000, as the published scheduler rounds it.

    Raises:
        ValueError: there is no window, or there are fewer steps than windows.
    """
    if windows < 1:
        raise ValueError(f"The number of windows is {windows}. Give 1 or more; the released models have 4.")
    if steps < windows:
        raise ValueError(f"{steps} steps are fewer than the {windows} windows. Give at least one step to a window.")
    levels = []
    for i in range(windows):
        inside = steps // windows + (i < steps % windows)
        start, end = (windows - i) / windows, (windows - i - 1) / windows
        levels += [start + (end - start) * j / inside for j in range(inside)]
    return [math.floor(level * _TIMESTEPS + 1e-9) / _TIMESTEPS for level in levels] + [0.0]


def window_velocity(
    x: Tensor, output: Tensor, level: Tensor, windows: int, alphas_cumprod: Tensor, prediction: str
) -> Tensor:
    """dx / dlevel inside the window: (x_end - x) / (end - level), with x_end = lambda x + eta eps (the paper's
    parametrization of the velocity by the noise, as its published scheduler computes it).

    That is a x + b output with two numbers for each latent, which are computed in float64 on the CPU: not every
    accelerator has float64.

    Args:
        x, output: (B, C, H, W), the state and what the UNet says of it.
        level: (B, 1, 1, 1), in (0, 1].
        alphas_cumprod: (1000,), Stable Diffusion's.
        prediction: one of PREDICTIONS.

    Raises:
        ValueError: prediction is not one of PREDICTIONS.
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f"Unknown prediction {prediction!r}; expected one of {', '.join(PREDICTIONS)}.")
    alphas_cumprod, level = alphas_cumprod.cpu().double(), level.cpu().double()
    start = ((level - 0.1 / _TIMESTEPS) * windows).ceil().clamp(1, windows) / windows
    end = start - 1 / windows
    alpha_start, alpha_end = _alpha(alphas_cumprod, start), _alpha(alphas_cumprod, end)
    scale = (alpha_end / alpha_start).sqrt()
    if prediction == "diff_eps":
        shift = -(1 - alpha_start / alpha_end).sqrt() * scale
    else:
        shift = (1 - alpha_end).sqrt() - (1 - alpha_start).sqrt() * scale
    whole = scale * (level - start) + (end - level)
    of_x = (scale * (end - start) / whole - 1) / (end - level)
    of_output = shift / whole
    exact = torch.promote_types(x.dtype, torch.float32)
    return (of_x.to(exact).to(x.device) * x + of_output.to(exact).to(x.device) * output).to(x.dtype)


@torch.no_grad()
def perflow_solver(
    predict: Callable[[Tensor, float], Tensor],
    x: Tensor,
    steps: int,
    windows: int,
    alphas_cumprod: Tensor,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Latents from N(0, 1) noise x (B, C, H, W) by Euler steps through the windows, as the published scheduler takes
    them where the UNet predicts "diff_eps".

    Args:
        predict: from (B, C, H, W) and a timestep of 0 to 1000 to what the UNet says of it.
        callback: called after step i with (i, latents); may raise to cancel.

    Raises:
        ValueError: as `window_levels`.
    """
    for i, (level, after) in enumerate(pairwise(window_levels(steps, windows))):
        at = torch.full((len(x), 1, 1, 1), level)
        output = predict(x, _TIMESTEPS * level)
        x = x + (after - level) * window_velocity(x, output, at, windows, alphas_cumprod, "diff_eps")
        if callback:
            callback(i, x)
    return x


def _alpha(alphas_cumprod: Tensor, level: Tensor) -> Tensor:
    index = (level * _TIMESTEPS - 1 + 1e-6).long().clamp(min=0)
    return alphas_cumprod[index]
