"""A stand-in for a device without float64, as Apple's MPS is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


class NoFloat64(Tensor):
    """A tensor on the CPU that plays one on such a device: it may not become float64, nor meet a float64 tensor of more
    than one number. What is made of it is such a tensor too; `cpu()` and `to("cpu")` bring it back."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        back = func is Tensor.cpu or (func is Tensor.to and args[1:] == ("cpu",))
        result = super().__torch_function__(func, types, args, kwargs or {})
        if back:
            return result.as_subclass(Tensor)
        if any(isinstance(leaf, NoFloat64) and leaf.dtype == torch.float64 for leaf in tree_leaves(result)):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        return result


def on_device(tensor: Tensor) -> Tensor:
    """The tensor as one on the device."""
    return tensor.as_subclass(NoFloat64)
