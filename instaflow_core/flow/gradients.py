"""Gradients through a velocity field and Euler steps along it, with one evaluation of the field in memory at a time."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from .solvers import VelocityField


class OrdinaryTensors(TorchFunctionMode):
    """Inside it autograd can remember what a host's model does. Nothing of the model is changed.

    Autograd cannot remember, or remembers wrongly, three things of hosts: weights made in inference mode; weights
    copied into a buffer that the next layer's are copied into as well; results written with `out=`. Where a gradient
    goes through an operation, it sees copies of the former two, which live no longer than the graph they are part of,
    and its result is copied to where `out=` says. Where none goes through, nothing is remembered.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if not tensors:  # such as torch.no_grad's own switch, which is to stay as it is turned
            return func(*args, **kwargs)
        if not any(x.requires_grad and not x.is_inference() for x in tensors):
            written = args[0] if _in_place(name) and args else kwargs.get("out")
            with torch.inference_mode() if _of_inference(written) else torch.no_grad():
                return func(*args, **kwargs)
        if name == "__get__":  # an attribute, such as a shape
            return func(*args, **kwargs)
        out = kwargs.pop("out") if isinstance(kwargs.get("out"), Tensor) else None
        kept = 1 if _in_place(name) else 0  # what is written into is no copy
        args = args[:kept] + tree_map_only(Tensor, _lasting, args[kept:])
        result = func(*args, **tree_map_only(Tensor, _lasting, kwargs))
        return result if out is None else out.copy_(result)


def _in_place(name: str) -> bool:
    """Whether the tensor method of this name, such as add_, writes into its tensor."""
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _of_inference(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_inference()


def _lasting(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where autograd could not keep it until it goes back."""
    if tensor.is_inference():
        return tensor.detach().clone()
    return tensor.clone() if tensor._is_view() and not tensor.requires_grad else tensor


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
