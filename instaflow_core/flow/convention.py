"""The convention of InstaFlow (arXiv 2309.06380, section 2), and the only place where it is written down.

Time runs from t = 0 (noise, x_0) to t = 1 (data, x_1) on straight lines `x_t = t x_1 + (1 - t) x_0`, whose velocity
is `x_1 - x_0`. The UNet is asked at `1000 (1 - t)`. Hosts that count noise levels instead write sigma = 1 - t.

Everywhere: latents are (B, C, H, W) float tensors; a time is a float, a 0-d tensor, or a (B,) tensor with one time
for each latent.
"""

import torch
from torch import Tensor

UNET_TIME_SCALE = 1000.0
"""The UNet's time at pure noise: a float, one past Stable Diffusion's last timestep 999."""


def over(value: float | Tensor, x: Tensor) -> float | Tensor:
    """Shape a (B,) time so that it multiplies the (B, ...) tensor x; a single number stays as it is."""
    if isinstance(value, Tensor) and value.ndim == 1:
        return value.reshape(-1, *[1] * (x.ndim - 1))
    return value


def interpolate(x_0: Tensor, x_1: Tensor, t: float | Tensor) -> Tensor:
    """The point x_t = t x_1 + (1 - t) x_0 on the line from noise x_0 to data x_1, t in [0, 1] (eq. 1)."""
    t = over(t, x_0)
    return t * x_1 + (1 - t) * x_0


def velocity(x_0: Tensor, x_1: Tensor) -> Tensor:
    """The velocity x_1 - x_0 of that line: data minus noise, the same at every t (eq. 1)."""
    return x_1 - x_0


def data_from_velocity(x_t: Tensor, v: Tensor, t: float | Tensor) -> Tensor:
    """Where the line through x_t with velocity v ends at t = 1: x_1 = x_t + (1 - t) v."""
    return x_t + (1 - over(t, x_t)) * v


def unet_time(t: float | Tensor) -> float | Tensor:
    """The timestep the UNet is asked at: 1000 (1 - t), so exactly 1000.0 at pure noise."""
    return UNET_TIME_SCALE * (1 - t)


def time_from_unet(timestep: float | Tensor) -> float | Tensor:
    """The flow time t = 1 - timestep / 1000 of a UNet timestep."""
    return 1 - timestep / UNET_TIME_SCALE


def sigma_from_time(t: float | Tensor) -> float | Tensor:
    """The noise level sigma = 1 - t that hosts count in."""
    return 1 - t


def time_from_sigma(sigma: float | Tensor) -> float | Tensor:
    """The flow time t = 1 - sigma of a host's noise level, sigma in [0, 1]."""
    return 1 - sigma


def denoised_from_velocity(x: Tensor, v: Tensor, sigma: float | Tensor) -> Tensor:
    """The data a host calls denoised: x + sigma v. A plus, because v points from noise to data."""
    return data_from_velocity(x, v, time_from_sigma(sigma))


def velocity_from_denoised(x: Tensor, denoised: Tensor, sigma: float | Tensor) -> Tensor:
    """The velocity behind what a host calls denoised, the other way round: (denoised - x) / sigma, sigma above 0."""
    return (denoised - x) / over(sigma, x)


def rectified_flow_coordinates(x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
    """A diffusion state x = alpha x_1 + sigma x_0 brought to rectified-flow coordinates.

    Returns:
        x / (alpha + sigma), which lies on the line from x_0 to x_1, and its time t = alpha / (alpha + sigma).
    """
    total = torch.as_tensor(alpha + sigma, device=x.device)
    return x / over(total, x), torch.as_tensor(alpha, device=x.device) / total
