"""What a CPU computes faster than the host asks it to: attention in one pass, and products in bfloat16.

The host takes a CPU for a device of last resort: attention there is put together from slices, which at 512 x 512
takes several times as long as PyTorch's own for CPUs, and bfloat16 is only a way to keep weights.
"""

from __future__ import annotations

from typing import Any

import comfy.ldm.modules.attention as attention
import torch
from comfy.cli_args import args

_OVERRIDE = "optimized_attention_override"


def attention_in_one_pass(options: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """transformer_options by which attention on a CPU is PyTorch's own, equal up to rounding; those given where the
    device is another, where another node has chosen an attention, or the user one for all of the host."""
    chosen = args.use_quad_cross_attention or attention.optimized_attention is not attention.attention_sub_quad
    if device.type != "cpu" or chosen or _OVERRIDE in options:
        return options
    return {**options, _OVERRIDE: _in_one_pass}


def _in_one_pass(_: Any, *tensors: Any, **more: Any) -> Any:
    return attention.attention_pytorch(*tensors, **more)


def no_bfloat16(device: torch.device) -> str | None:
    """Why a model on this device is not faster in bfloat16, in words; None where it is: a CPU that multiplies in it by
    instructions of its own (of those for ARM PyTorch says nothing). Others take longer for it than for float32."""
    if device.type != "cpu":
        return (
            f"bf16 is for CPUs; on {device} ComfyUI has chosen the fastest type already. Computed as in the mode exact."
        )
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    # Older versions of PyTorch ask one by one.
    asked = [getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile")]
    if any(asked) or any(known.get(name) for name in ("avx512_bf16", "amx_bf16")):
        return None
    return (
        "This CPU has no instructions for bfloat16 (AVX512-BF16 or AMX), so it would be slower. "
        "Computed as in the mode exact."
    )
