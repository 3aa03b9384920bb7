"""A small random InstaFlow and a ControlNet that fits it.

Both have Stable Diffusion 1.5's anatomy at a fifth of its width, with attention heads 64 wide: what the host assumes of
a ControlNet whose width it does not know.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from small_models import scale_output, small_checkpoint
from torch import Tensor

from instaflow_core.weights.matching import rows_of, to_ldm
from instaflow_core.weights.saving import save_folder

SD15_NARROW = {
    "cross_attention_dim": 64,
    "attention_head_dim": (1, 2, 4, 4),  # diffusers' name for the number of heads
    "block_out_channels": (64, 128, 256, 256),
}


def new_pair() -> tuple[Any, Any]:
    """A UNet2DConditionModel and a ControlNetModel whose effect on it is of the size of the velocity."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**SD15_NARROW).eval()
        controlnet = ControlNetModel(**SD15_NARROW).eval()
        last = [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]
        for layer in [*last, controlnet.controlnet_cond_embedding.conv_out]:
            torch.nn.init.normal_(layer.weight, std=0.1)  # zero in an untrained ControlNet
    scale_output(unet)
    return unet, controlnet


def install_pair(
    models: Path, unet: Any, controlnet: Any, folder: str = "sd15_narrow", file: str = "narrow.safetensors"
) -> None:
    """Write diffusers/`folder` and controlnet/`file` into a host's models folder."""
    config = dict(unet.config)
    checkpoint = dataclasses.replace(small_checkpoint("2-rectified-flow"), unet=_weights(unet), unet_config=config)
    save_folder(checkpoint, models / "diffusers" / folder)
    (models / "controlnet").mkdir(exist_ok=True)
    save_file(as_published(controlnet, config), models / "controlnet" / file)


def as_published(controlnet: Any, unet_config: dict[str, Any]) -> dict[str, Tensor]:
    """A ControlNet's weights under the names of the published files, such as control_v11p_sd15_canny.pth."""
    tensors = _weights(controlnet)
    named = to_ldm(tensors, rows_of("unet", unet_config), "control_model.")
    skips = sum(name.startswith("controlnet_down_blocks.") and name.endswith(".weight") for name in tensors)
    convolutions = {f"controlnet_down_blocks.{i}": f"zero_convs.{i}.0" for i in range(skips)}
    hint = ["conv_in", *(f"blocks.{i}" for i in range(6)), "conv_out"]
    convolutions |= {f"controlnet_cond_embedding.{name}": f"input_hint_block.{2 * i}" for i, name in enumerate(hint)}
    convolutions["controlnet_mid_block"] = "middle_block_out.0"
    for name, published in convolutions.items():
        for part in ("weight", "bias"):
            named[f"control_model.{published}.{part}"] = tensors[f"{name}.{part}"]
    assert len(named) == len(tensors)
    return named


def _weights(module: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}
