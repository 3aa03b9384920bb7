"""Solvers for dx/dt = velocity(x, t) from noise (t = 0) to data (t = 1), or along any other grid of times."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

VelocityField = Callable[[Tensor, float], Tensor]
"""velocity(x, t): x is (B, C, H, W), t a float in [0, 1]; returns the shape of x."""


def time_grid(steps: int) -> Tensor:
    """The uniform grid t_i = i / steps, i = 0..steps, as (steps + 1,) float64.

    Raises:
        ValueError: steps is below 1.
    """
    if steps < 1:
        raise ValueError(f"The number of steps is {steps}; a flow needs at least 1. Set steps to 1 or more.")
    return torch.arange(steps + 1, dtype=torch.float64) / steps


def euler(
    velocity: VelocityField, x: Tensor, times: Tensor, callback: Callable[[int, Tensor], None] | None = None
) -> Tensor:
    """Euler's method: x_{i+1} = x_i + (t_{i+1} - t_i) velocity(x_i, t_i).

    Args:
        x: the state at times[0], (B, C, H, W). With `time_grid(1)` the result is x_0 + v(x_0, 0).
        times: (N + 1,), rising for sampling, falling for inversion.
        callback: called after step i with (i, the state), where a caller shows progress or cancels by raising.
    """
    for i, (now, after) in enumerate(_pairs(times)):
        x = x + (after - now) * velocity(x, now)
        if callback:
            callback(i, x)
    return x


def _pairs(times: Tensor) -> list[tuple[float, float]]:
    values = times.tolist()
    return list(pairwise(values))
