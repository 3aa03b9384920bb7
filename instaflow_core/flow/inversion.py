"""Which noise makes this picture: the flow's Euler steps backwards, then the noise moved until they give it again.

Euler's step x_{i+1} = x_i + h v(x_i, t_i) has its velocity where it begins. Taking v(x_{i+1}, t_i) instead ("naively
reversing") is poor, and poorest for the one-step model. Here every step is solved, x_i + h v(x_i, t_i) = x_{i+1}, by
damped fixed-point iteration; what error is left at the picture is then made small by following its gradient with
respect to the noise, while the noise is kept Gaussian. For one step that is x_0 + v(x_0, 0) = x_1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .gradients import euler_gradient
from .solvers import VelocityField, euler, time_grid

TOLERANCE = 0.02
"""Root mean square error of the latents at which a picture counts as reproduced; their own deviation is about 1."""

ITERATIONS = 60
"""How often `invert` asks the flow at moved noise, at most."""

GAUSSIAN_WEIGHT = 0.05
"""How much being Gaussian counts beside the error of the picture."""

Progress = Callable[[Tensor | None], None]
"""Called after each step solved, with None, and each time the flow is asked at moved noise, with what it makes of that
noise (B, C, H, W); may raise to cancel."""


class _Enough(Exception):
    """No more evaluations."""


@dataclass(frozen=True)
class Inversion:
    """The noise that makes a picture, and how well it does.

    Attributes:
        noise: (B, C, H, W).
        residual: (B,), root mean square error of the latents that the noise gives back.
        naive_residual: (B,), the same for the noise of naively reversed steps.
    """

    noise: Tensor
    residual: Tensor
    naive_residual: Tensor


@torch.no_grad()
def invert(
    velocity: VelocityField, x_1: Tensor, steps: int, iterations: int = ITERATIONS, progress: Progress | None = None
) -> Inversion:
    """The noise from which `steps` Euler steps make x_1.

    Args:
        x_1: the picture's latents (B, C, H, W), as the UNet takes them.
        steps: of the sampling that shall give the picture back; 1 for the one-step model.
        iterations: how often the flow is asked at moved noise, at most. Each costs an evaluation of the whole flow and
            its gradient.
        progress: see Progress; called at most steps + iterations times.

    Raises:
        ValueError: steps is below 1.
    """
    times = time_grid(steps)
    naive = round_trip_error(velocity, naive_reverse(velocity, x_1, times), x_1, times)
    start = reverse(velocity, x_1, times, progress)
    error = round_trip_error(velocity, start, x_1, times)
    if (error < TOLERANCE).all() and unlikeness(start)[0] == 0:
        return Inversion(start, error, naive)
    moved = refine(velocity, start, x_1, times, iterations, progress)
    error_moved = round_trip_error(velocity, moved, x_1, times)
    better = (error_moved < error) | (error_moved < TOLERANCE)
    noise = torch.where(better.view(-1, 1, 1, 1), moved, start)
    return Inversion(noise, torch.where(better, error_moved, error), naive)


@torch.no_grad()
def naive_reverse(velocity: VelocityField, x_1: Tensor, times: Tensor) -> Tensor:
    """The noise of steps reversed without correction: x_i = x_{i+1} - h v(x_{i+1}, t_i). times: (N + 1,) rising."""
    x = x_1
    for now, after in reversed(list(pairwise(times.tolist()))):
        x = x - (after - now) * velocity(x, now)
    return x


@torch.no_grad()
def reverse(velocity: VelocityField, x_1: Tensor, times: Tensor, progress: Progress | None = None) -> Tensor:
    """The noise of steps solved backwards from x_1, each by `solve_step`. times: (N + 1,) rising."""
    x = x_1
    for now, after in reversed(list(pairwise(times.tolist()))):
        x = solve_step(velocity, x, now, after - now)
        if progress:
            progress(None)
    return x


@torch.no_grad()
def solve_step(velocity: VelocityField, y: Tensor, t: float, duration: float, iterations: int = 8) -> Tensor:
    """The x (B, C, H, W) with x + duration velocity(x, t) = y, as nearly as damped fixed-point iteration finds it.

    The first iterate is y - duration velocity(y, t), the naively reversed step. Later ones are taken only where they
    are nearer, latent by latent; elsewhere the next is damped more.
    """
    x, error = y, duration * velocity(y, t)
    damping = torch.ones(len(y), 1, 1, 1, device=y.device, dtype=y.dtype)
    for _ in range(iterations):
        trial = x - damping * error
        error_there = trial + duration * velocity(trial, t) - y
        nearer = (_rms(error_there) < _rms(error)).view(-1, 1, 1, 1)
        x, error = torch.where(nearer, trial, x), torch.where(nearer, error_there, error)
        damping = torch.where(nearer, (1.5 * damping).clamp(max=1), damping / 2)
        if (_rms(error) < TOLERANCE / 20).all():
            break
    return x


@torch.no_grad()
def refine(
    velocity: VelocityField,
    x_0: Tensor,
    x_1: Tensor,
    times: Tensor,
    iterations: int,
    progress: Progress | None = None,
) -> Tensor:
    """The noise x_0 moved, by L-BFGS, until Euler's steps make x_1 of it and it looks Gaussian.

    What is made small is the mean squared error of the latents plus GAUSSIAN_WEIGHT times `unlikeness`, of the whole
    batch at once: one latent's line search is every one's. It stops when every error is below TOLERANCE and nothing of
    the noise is unlikely. After `iterations` evaluations, the first included, it ends with the best of them.
    """
    with torch.inference_mode(False):
        x = x_0.detach().clone().requires_grad_()
        target = x_1.detach().clone()
        evaluations, done = 0, False
        best, least = x.detach().clone(), float("inf")

        def objective() -> float:
            nonlocal evaluations, done, best, least
            if evaluations >= iterations:  # a line search knows no limit of its own
                raise _Enough
            end, error, penalty, x.grad = distance(velocity, x.detach(), target, times)
            if progress and evaluations:  # the first is where it starts
                progress(end)
            evaluations += 1
            done = bool((error.sqrt() < TOLERANCE).all()) and float(penalty) == 0
            value = float(error.sum() + GAUSSIAN_WEIGHT * penalty)
            if value < least:
                best, least = x.detach().clone(), value
            return value

        optimizer = torch.optim.LBFGS(
            [x], max_iter=5, history_size=20, tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe"
        )
        try:
            while not done:
                optimizer.step(objective)
        except _Enough:
            return best
    return x.detach()


def distance(
    velocity: VelocityField, x_0: Tensor, target: Tensor, times: Tensor, weight: Tensor | float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """How far from a target Euler's steps lead, and which way to move the noise.

    Args:
        target: (B, C, H, W) at t = 1; weight: what each element counts, with a mean of 1 for each latent.

    Returns:
        Where they lead (B, C, H, W), the mean squared differences (B,), the `unlikeness` of the noise, and the gradient
        (B, C, H, W) of the sum of those differences plus GAUSSIAN_WEIGHT times that unlikeness.
    """
    end, gradient = euler_gradient(velocity, x_0, times, lambda end: 2 * weight * (end - target) / target[0].numel())
    penalty, push = unlikeness(x_0)
    error = (weight * (end - target).square()).mean((1, 2, 3))
    return end, error, penalty, gradient + GAUSSIAN_WEIGHT * push


def unlikeness(noise: Tensor) -> tuple[Tensor, Tensor]:
    """How far noise (B, C, H, W) is from white Gaussian noise, summed over the batch, and the gradient of that.

    The squares of three numbers that are 0 for it on average (mean square less 1, the channels' means, correlation of
    neighbours), as far as they exceed twice what they come to by chance. Most noise drawn at random has 0.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = noise.detach().clone().requires_grad_()
        square, mean = x.square().mean((1, 2, 3)) - 1, x.mean((2, 3))
        neighbours = torch.stack([(x * x.roll(1, along)).mean((1, 2, 3)) for along in (2, 3)])
        by_chance = 4 / x[0].numel() + 1 / x[0, 0].numel()
        excess = square.square() + mean.square().mean(1) + neighbours.square().sum(0) - 2 * by_chance
        penalty = excess.clamp(min=0).sum()
        (gradient,) = torch.autograd.grad(penalty, x)
    return penalty.detach(), gradient


@torch.no_grad()
def round_trip_error(velocity: VelocityField, x_0: Tensor, x_1: Tensor, times: Tensor) -> Tensor:
    """Root mean square difference (B,) between x_1 and what Euler's steps make of the noise x_0."""
    return _rms(euler(velocity, x_0, times) - x_1)


def _rms(x: Tensor) -> Tensor:
    return x.flatten(1).square().mean(1).sqrt()
