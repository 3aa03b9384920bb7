"""A stand-in for a GPU or a Mac: a second device, where no tensor of the CPU may meet a tensor that was moved there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch._dynamo  # which must not load while the modes below see every call
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from instaflow_core.training.accelerator import own_state

DEVICE = torch.device("mps:0")
"""It goes by the name of Apple's, which PyTorch lets anyone say without a driver."""

_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default}
"""What takes numbers from one device to another."""
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default}
"""What takes its indices from the CPU too."""


class Moved(Tensor):
    """A tensor on the second device. It has no memory that the CPU could read; `there` holds its numbers."""

    there: Tensor
    # For PyTorch's own C++ it is on the meta device, which needs no driver.
    device = property(lambda self: DEVICE)  # type: ignore[assignment]
    is_meta = False

    @staticmethod
    def __new__(cls, there: Tensor) -> Moved:
        layout = (there.shape, there.stride(), there.storage_offset())
        moved = Tensor._make_wrapper_subclass(cls, *layout, dtype=there.dtype, device="meta")
        moved.there = there
        return moved

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(index, value if isinstance(value, Tensor) else torch.tensor(value).to(DEVICE))

    def tolist(self) -> Any:
        return self.there.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() to copy it first.")

    __array__ = numpy

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.there.detach().__reduce_ex__(protocol)

    def __repr__(self, **_: Any) -> str:
        return f"Moved({self.there})"


class _Sent(TorchFunctionMode):
    """Leaves a tensor that is sent to the second device and is there already as it is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.to and isinstance(args[0], Moved) and not isinstance(args[1:2], Tensor):
            device, dtype, *_ = torch._C._nn._parse_to(*args[1:], **kwargs)
            if device is not None and device.type == DEVICE.type:
                return args[0] if dtype in (None, args[0].dtype) else args[0].to(dtype)
        args, kwargs = [_numbered(arg) for arg in args], {name: _numbered(arg) for name, arg in kwargs.items()}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == DEVICE:
            return func(*args, **kwargs | {"device": "cpu"}).to(DEVICE)  # made where no mode sees it
        return func(*args, **kwargs)


def _numbered(value: Any) -> Any:
    """The second device with its number: PyTorch would ask a driver for it."""
    return DEVICE if isinstance(value, str | torch.device) and str(value) == DEVICE.type else value


class _Watched(TorchDispatchMode):
    """Sees every operation, also those that make a tensor on the second device or send one there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the numbers. Its result is on the device it asks for, or else where its tensors are."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    asked = kwargs.get("device")
    if asked == torch.device("meta") and not tensors:
        asked = DEVICE  # PyTorch's own C++ makes something beside a tensor of ours
    there = torch.device(asked).type == DEVICE.type if asked is not None else any(isinstance(t, Moved) for t in tensors)
    if not there and not any(isinstance(t, Moved) for t in tensors):
        return func(*args, **kwargs)
    _check_met(func, tensors)
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu") if there else asked}
    on_cpu = tree_map(lambda value: value.there if isinstance(value, Moved) else value, (args, kwargs))
    made = func(*on_cpu[0], **on_cpu[1])
    if func is _aten.copy_.default:
        return args[0]
    if not there:
        return made
    made = tree_map(lambda value: Moved(value) if isinstance(value, Tensor) else value, made)
    return return_and_correct_aliasing(func, args, kwargs, made)


def _check_met(func: Any, tensors: list[Tensor]) -> None:
    """Refuse what a real device refuses; a single number may come from the CPU."""
    if func in _COPIES or not any(isinstance(tensor, Moved) for tensor in tensors):
        return
    if func in _INDEXED and isinstance(tensors[0], Moved):
        return
    if any(not isinstance(tensor, Moved) and (tensor.dim() or func in _INDEXED) for tensor in tensors):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and cpu! ({func})"
        )


@contextmanager
def second_device() -> Iterator[None]:
    """This machine as one whose accelerator is the second device; PyTorch and accelerate choose it by themselves."""
    with pytest.MonkeyPatch.context() as patch, _Watched(), _Sent(), torch.autograd.set_multithreading_enabled(False):
        patch.setattr(torch.backends.mps, "is_available", lambda: True)
        patch.setattr(torch.backends.mps, "is_built", lambda: True)
        patch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version: True)
        patch.setattr(torch.mps, "empty_cache", lambda: None)
        patch.setattr(torch.mps, "manual_seed", lambda seed: None)
        patch.setattr(torch, "_has_compatible_shallow_copy_type", _stays)
        with own_state():  # of accelerate, which may have chosen a device for this process before
            yield


def _stays(parameter: Tensor, moved: Tensor) -> bool:
    """Whether a module keeps its parameter's object when it is sent somewhere: one cannot become of another class."""
    return parameter is moved or not (isinstance(parameter, Moved) or isinstance(moved, Moved))
