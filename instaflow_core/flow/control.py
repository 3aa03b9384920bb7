"""Steering what a flow makes by gradients (FlowGrad, Liu et al., CVPR 2023): its noise is moved until the end agrees.

FlowGrad steers an ODE by back-propagating through few of its many steps. A rectified flow has few steps to begin with,
so all of them are kept, one evaluation in memory at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .inversion import distance
from .solvers import VelocityField, euler, time_grid


@dataclass(frozen=True)
class Control:
    """What steering has come to.

    Attributes:
        noise: (B, C, H, W), the noise it ended with.
        x_1: (B, C, H, W), what the flow makes of that noise.
        before, after: (B,), mean squared distance to the target inside the mask, at first and in the end.
    """

    noise: Tensor
    x_1: Tensor
    before: Tensor
    after: Tensor


@torch.no_grad()
def control(
    velocity: VelocityField,
    x_0: Tensor,
    target: Tensor,
    steps: int,
    iterations: int,
    learning_rate: float,
    mask: Tensor | None = None,
    progress: Callable[[Tensor], None] | None = None,
) -> Control:
    """Move noise by Adam until `steps` Euler steps make something of it that is near a target, and keep it Gaussian.

    Args:
        x_0: the noise to begin with, (B, C, H, W).
        target: latents as the UNet takes them, of that shape.
        iterations: moves of the noise; each costs an evaluation and a gradient of every step.
        learning_rate: how far Adam moves an element at most in one of them; the noise's own deviation is 1.
        mask: where to agree, (B, 1, H, W) in [0, 1]; None is everywhere. Elsewhere the flow makes what it likes.
        progress: called after each move with what the flow makes of the noise, (B, C, H, W); may raise to cancel.

    Returns:
        The best of all moves, latent by latent; the beginning where none came nearer.

    Raises:
        ValueError: steps is below 1, or a mask is 0 everywhere.
    """
    times, weight = time_grid(steps), _weight(mask, target)
    with torch.inference_mode(False):
        x, goal, weight = x_0.detach().clone(), target.detach().clone(), weight.clone()
        x.requires_grad_()
        optimizer = torch.optim.Adam([x], lr=learning_rate)
        best = x.detach().clone()
        _, before, _, x.grad = distance(velocity, x.detach(), goal, times, weight)
        after = before
        for _ in range(iterations):
            optimizer.step()
            end, now, _, x.grad = distance(velocity, x.detach(), goal, times, weight)
            nearer = now < after
            best = torch.where(nearer.view(-1, 1, 1, 1), x.detach(), best)
            after = torch.where(nearer, now, after)
            if progress:
                progress(end)
    return Control(best, euler(velocity, best, times), before, after)


def _weight(mask: Tensor | None, like: Tensor) -> Tensor:
    """What each place counts, (B, 1, H, W) with a mean of 1."""
    if mask is None:
        return torch.ones_like(like[:, :1])
    share = mask.mean((1, 2, 3), keepdim=True)
    if (share == 0).any():
        raise ValueError("The mask is 0 everywhere: there is nowhere to agree with the target. Paint some of it white.")
    return mask / share
