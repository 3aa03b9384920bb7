"""Gradients through a velocity field and Euler steps along it, with one evaluation of the field in memory at a time."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from .solvers import VelocityField


class OrdinaryTensors(TorchFunctionMode):
    """Inside it, operations see a copy of every tensor made in inference mode, which autograd refuses to remember.

    A host that loads its models in inference mode has such weights. Nothing of the model is changed, and a copy lives
    no longer than the graph it is part of.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map_only(Tensor, _ordinary, (args, kwargs or {}))
        return func(*args, **kwargs)


def _ordinary(tensor: Tensor) -> Tensor:
    return tensor.detach().clone() if tensor.is_inference() else tensor


def linearize(velocity: VelocityField, x: Tensor, t: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The velocity at (x, t), and a function that multiplies a tensor of its shape by its Jacobian, from the left.

    Works inside inference mode too. The function may be called once; until then it holds what one evaluation of the
    velocity leaves behind for it.
    """
    with torch.inference_mode(False), torch.enable_grad(), OrdinaryTensors():
        start = x.detach().clone().requires_grad_()
        value = velocity(start, t)

    def pull_back(cotangent: Tensor) -> Tensor:
        with torch.inference_mode(False):
            scale = cotangent.detach().abs().max().clamp(min=1e-30)  # small numbers would vanish in a float16 model
            (gradient,) = torch.autograd.grad(value, start, cotangent.detach() / scale)
            return gradient * scale

    return value.detach(), pull_back


def euler_gradient(
    velocity: VelocityField, x_0: Tensor, times: Tensor, gradient_at: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Where Euler's steps lead, and the gradient with respect to x_0 of a function of that end.

    The steps' own adjoint, from last to first: g_i = g_{i+1} + (t_{i+1} - t_i) J(x_i, t_i)^T g_{i+1}. Each velocity but
    the last is evaluated twice, so that the memory needed does not grow with the number of steps.

    Args:
        x_0: (B, C, H, W); times: (N + 1,) rising, N at least 1.
        gradient_at: the function's gradient at the end x_N, (B, C, H, W) as x_N.

    Returns:
        x_N and the gradient, both of the shape of x_0.
    """
    grid = times.tolist()
    states = [x_0]
    with torch.no_grad():
        for now, after in pairwise(grid[:-1]):
            states.append(states[-1] + (after - now) * velocity(states[-1], now))
    value, pull_back = linearize(velocity, states[-1], grid[-2])
    end = states[-1] + (grid[-1] - grid[-2]) * value
    gradient = gradient_at(end)
    gradient = gradient + (grid[-1] - grid[-2]) * pull_back(gradient)
    for i in reversed(range(len(grid) - 2)):
        _, pull_back = linearize(velocity, states[i], grid[i])
        gradient = gradient + (grid[i + 1] - grid[i]) * pull_back(gradient)
    return end, gradient
