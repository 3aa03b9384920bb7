"""How straight trajectories from noise to data are (section 2 of the paper): 0 where one Euler step is exact."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .convention import rectified_flow_coordinates
from .diffusion import noise_schedule
from .solvers import VelocityField, euler

PredictNoise = Callable[[Tensor, int], Tensor]
"""predict_noise(x, timestep): a diffusion model's noise at its state x (B, C, H, W) and timestep 0..999."""


@dataclass(frozen=True)
class Straightness:
    """S(Z) and how it comes about.

    Attributes:
        value: S, the mean of the curve over time; 0 is straight.
        times: (N,), the middle of each step.
        curve: (N,), the mean over latents and their elements of ((Z_1 - Z_0) - v)^2 in each step.
    """

    value: float
    times: Tensor
    curve: Tensor


def straightness(states: Sequence[Tensor], times: Tensor) -> Straightness:
    """S(Z) = int_0^1 E || (Z_1 - Z_0) - v(Z_t, t) ||^2 dt of trajectories (section 2), as a mean over elements.

    A mean and not a sum, so that S does not grow with the size of a picture. The velocity of a step is its displacement
    over its duration: for Euler's steps exactly the field's velocity where the step began, for others its mean over
    the step. Trajectories that begin after t = 0, as a diffusion model's do, are measured over the time they take.

    Args:
        states: N + 1 states (B, C, H, W), noise first.
        times: their (N + 1,) rising times.

    Raises:
        ValueError: there are not as many states as times, or fewer than two.
    """
    if len(states) != len(times) or len(times) < 2:
        raise ValueError(
            f"There are {len(states)} states for {len(times)} times. Give one time for each state, and two or more."
        )
    # Not every accelerator has float64: there in float32, and what is left, a number for each latent, on the CPU.
    exact = torch.promote_types(states[0].dtype, torch.float32)
    times = times.cpu().double()
    durations = times.diff()
    whole = (states[-1] - states[0]).to(exact) / (times[-1] - times[0]).item()
    deviations = [
        (whole - (after - before).to(exact) / duration).square().flatten(1).mean(1).cpu().double().mean()
        for before, after, duration in zip(states, states[1:], durations.tolist(), strict=False)
    ]
    curve = torch.stack(deviations)
    value = float((curve * durations).sum() / durations.sum())
    return Straightness(value, (times[1:] + times[:-1]) / 2, curve)


def mean_straightness(paths: Iterable[Straightness]) -> Straightness:
    """The straightness of many latents from that of each: the same as of all at once, with the states of one in memory.

    Args:
        paths: each over the same times and of equally many latents; may be a generator.

    Raises:
        ValueError: there are none.
    """
    count, value, curve, times = 0, 0.0, torch.zeros(()), torch.zeros(0)
    for path in paths:
        count, value, curve, times = count + 1, value + path.value, curve + path.curve, path.times
    if not count:
        raise ValueError("There are no paths to average over. Give one or more.")
    return Straightness(value / count, times, curve / count)


def flow_trajectory(
    velocity: VelocityField, x_0: Tensor, times: Tensor, callback: Callable[[int, Tensor], None] | None = None
) -> list[Tensor]:
    """The states of Euler's method at `times`, x_0 first: what `straightness` takes. callback as in `solvers.euler`."""
    states = [x_0]

    def keep(i: int, x: Tensor) -> None:
        states.append(x)
        if callback:
            callback(i, x)

    euler(velocity, x_0, times, keep)
    return states


def diffusion_trajectory(predict_noise: PredictNoise, noise: Tensor, steps: int = 100) -> tuple[list[Tensor], Tensor]:
    """A diffusion teacher's trajectory in rectified-flow coordinates, for `straightness`.

    The probability-flow ODE on Stable Diffusion's schedule by deterministic DDIM. A state x = alpha x_1 + sigma x_0
    becomes x / (alpha + sigma) at t = alpha / (alpha + sigma): straight there means straight for a rectified flow. (In
    these coordinates a step of DDIM is a step of Euler's method.)

    Args:
        noise: (B, C, H, W), N(0, 1): the state at timestep 999.
        steps: evaluations of the model, at timesteps evenly from 999 to 0; 1 to 1000.

    Returns:
        steps + 1 states and their (steps + 1,) float64 times, from about 0.06 to 1.
    """
    timesteps = torch.linspace(999, 0, steps, dtype=torch.float64).round().long()
    signal = torch.cat([noise_schedule().alphas_cumprod[timesteps].double(), torch.ones(1, dtype=torch.float64)])
    alphas, sigmas = signal.sqrt().tolist(), (1 - signal).sqrt().tolist()
    x, states = noise, [noise]
    for i, timestep in enumerate(timesteps.tolist()):
        predicted = predict_noise(x, timestep)
        data = (x - sigmas[i] * predicted) / alphas[i]
        x = alphas[i + 1] * data + sigmas[i + 1] * predicted
        states.append(x)
    moved = [rectified_flow_coordinates(*state) for state in zip(states, alphas, sigmas, strict=True)]
    return [z for z, _ in moved], torch.tensor([float(t) for _, t in moved], dtype=torch.float64)
