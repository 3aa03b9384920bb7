"""A MODEL whose gradients are whole: weights that stay where they are, attention that knows the way back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from comfy.ldm.modules.attention import CrossAttention, attention_pytorch

_OVERRIDE = "optimized_attention_override"


def with_gradients(model: Any) -> Any:
    """A clone of the MODEL that gradients can be taken through.

    It has no dynamic VRAM, where a newer host has it: that may take a weight away, or put another in its place, between
    the evaluation and its gradient. It computes on one device: on several the host keeps nothing for a gradient. Where
    attention is computed by a kernel without a backward pass (SageAttention), PyTorch's own takes its place while a
    gradient is wanted.
    """
    dynamic = getattr(model, "is_dynamic", None)
    whole = dynamic is not None and dynamic() and model.cached_patcher_init is not None
    plain = model.clone(disable_dynamic=True) if whole else model.clone()
    if hasattr(plain, "remove_additional_models"):
        plain.remove_additional_models("multigpu")
    options = plain.model_options["transformer_options"] = dict(plain.model_options.get("transformer_options", {}))
    former = options.get(_OVERRIDE)

    def attention(function: Any, *args: Any, **kwargs: Any) -> Any:
        result = former(function, *args, **kwargs) if former else function(*args, **kwargs)
        return attention_pytorch(*args, **kwargs) if _is_cut_off(result) else result

    options[_OVERRIDE] = attention
    return plain


@contextmanager
def attention_checked(model: Any) -> Iterator[None]:
    """Inside it the MODEL's attention raises ValueError where no gradient goes through it all the same: the gradient
    would be that of the rest of the network."""

    def check(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if _is_cut_off(inputs[0]):
            raise ValueError(
                "The MODEL's attention is computed in a way that has no gradient, as by a node that patches it for "
                "speed. Take that node out, or start ComfyUI with --use-pytorch-cross-attention."
            )

    modules = model.model.diffusion_model.modules()
    hooks = [m.to_out.register_forward_pre_hook(check) for m in modules if isinstance(m, CrossAttention)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _is_cut_off(result: torch.Tensor) -> bool:
    """Whether autograd, which watches, has lost sight of what began with a tensor that it watches."""
    return torch.is_grad_enabled() and not result.requires_grad
