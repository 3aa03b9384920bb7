"""A UNet trained by a low-rank adapter on its attention layers (LoRA, arXiv 2106.09685), which is merged in the end."""

from pathlib import Path
from typing import Any

import torch

from ..weights.files import write_weights
from ..weights.loras import under_kohya_names

_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def add_lora(unet: Any, rank: int, seed: int) -> None:
    """Freeze the UNet and add an adapter whose start depends on the seed alone."""
    from peft import LoraConfig

    unet.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # no device's: those would not be put back
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=_TARGETS))


def save_lora(unet: Any, rank: int, path: Path) -> None:
    """Write the adapter as a LoRA file that ComfyUI's loader reads, and merge it into the UNet."""
    from peft import get_peft_model_state_dict

    tensors = {f"unet.{name}": tensor.cpu() for name, tensor in get_peft_model_state_dict(unet).items()}
    write_weights(under_kohya_names(tensors, {"unet": rank}), path, {"format": "pt"})
    unet.fuse_lora()
    unet.unload_lora()
