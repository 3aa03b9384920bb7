"""All that a MODEL holds, to be compared before and after."""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def model_state(model: Any) -> dict[str, Any]:
    """What a MODEL is made of, by name: tensors as digests of their bits, functions and modules as which they are."""
    inner = model.model
    return {
        "weights": {name: _digest(tensor) for name, tensor in inner.state_dict().items()},
        "buffers": {name: _digest(tensor) for name, tensor in inner.named_buffers()},
        "modules": {name: (id(module), type(module), _hooks(module)) for name, module in inner.named_modules()},
        "gradients": {name: (w.requires_grad, w.grad is None) for name, w in inner.named_parameters()},
        "training": inner.training,
        "schedule": {
            name: _plain(value) for name, value in sorted(vars(model.get_model_object("model_sampling")).items())
        },
        "patches": (model.patches_uuid, _plain(model.patches)),
        **{
            name: _plain(getattr(model, name))
            for name in ("model_options", "object_patches", "wrappers", "callbacks", "attachments", "injections")
        },
        **{
            name: _plain(getattr(model, name))
            for name in ("hook_patches", "forced_hooks", "additional_models", "cached_patcher_init", "load_device")
        },
    }  # fmt: skip


def _hooks(module: torch.nn.Module) -> tuple[int, ...]:
    return tuple(len(getattr(module, f"_{kind}_hooks")) for kind in ("forward", "forward_pre", "backward"))


def _digest(tensor: torch.Tensor) -> tuple[Any, ...]:
    bits = tensor.detach().contiguous().view(torch.uint8) if tensor.numel() and tensor.dim() else tensor.detach()
    return tensor.dtype, tuple(tensor.shape), hashlib.sha256(bits.cpu().numpy().tobytes()).hexdigest()


def _plain(value: Any) -> Any:
    """Containers by what is in them, tensors by their bits, plain values as they are, others as which object it is."""
    if isinstance(value, dict):
        return {str(name): _plain(held) for name, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(held) for held in value]
    if isinstance(value, torch.Tensor):
        return _digest(value)
    return value if isinstance(value, (str, int, float, bool, type(None), torch.dtype, torch.device)) else id(value)
