"""Small random checkpoints in every layout the nodes read. None of them has learned anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instaflow_core.shapes.making import anatomy
from instaflow_core.weights.checkpoint import Checkpoint
from instaflow_core.weights.saving import save, save_folder

KL_CONFIG: dict[str, Any] = {
    "block_out_channels": (32, 32, 64, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}


def small_checkpoint(
    stage: str = "one-step", prediction: str = "velocity", vae: str = "tiny", seed: int = 0
) -> Checkpoint:
    """A random checkpoint of the built-in models' anatomy, its velocity scaled to a deviation of about 1.

    Args:
        vae: "tiny" (AutoencoderTiny) or "kl" (AutoencoderKL).
    """
    unet, text_encoder = anatomy.new_unet(seed).eval(), anatomy.new_text_encoder(seed).eval()
    autoencoder = anatomy.new_vae(seed) if vae == "tiny" else new_kl(seed)
    scale_output(unet)
    metadata = {
        "instaflow.format": "1",
        "instaflow.prediction": prediction,
        "instaflow.stage": stage,
        "instaflow.native_size": "64",
    }
    return Checkpoint(
        unet=_weights(unet),
        unet_config=_config(unet),
        text_encoder=_text_weights(text_encoder),
        text_config=json.loads(text_encoder.config.to_json_string(use_diff=False)),
        vae=_weights(autoencoder),
        vae_config=_config(autoencoder),
        metadata=metadata,
    )


def new_kl(seed: int) -> Any:
    """An untrained AutoencoderKL at 1/8 scale."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKL(**KL_CONFIG)


@torch.no_grad()
def scale_output(unet: Any) -> None:
    """Scale a random UNet's last layer so that its outputs are as large as a velocity: a deviation of about 1."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    text = torch.randn(1, 77, unet.config.cross_attention_dim, generator=generator)
    output = unet(latents, 500.0, encoder_hidden_states=text, return_dict=False)[0]
    unet.conv_out.weight /= output.std()
    unet.conv_out.bias /= output.std()


def install(models: Path) -> None:
    """Write the checkpoints that tests name into a host's models folder (made if it is not there).

    checkpoints/one-step.safetensors, checkpoints/two-rf.safetensors (AutoencoderKL), checkpoints/teacher.safetensors;
    diffusers/folder; diffusion_models/bare.safetensors (diffusers keys, with metadata); loras/small.safetensors.
    """
    one_step = small_checkpoint()
    save(one_step, models / "checkpoints" / "one-step.safetensors")
    save(small_checkpoint("2-rectified-flow", vae="kl", seed=1), models / "checkpoints" / "two-rf.safetensors")
    save(small_checkpoint("teacher", "epsilon", seed=2), models / "checkpoints" / "teacher.safetensors")
    save_folder(one_step, models / "diffusers" / "folder")
    save_lora(models / "loras" / "small.safetensors")
    save_unet(one_step, models / "diffusion_models" / "bare.safetensors")


def save_unet(checkpoint: Checkpoint, path: Path) -> None:
    """A UNet alone, as diffusers names its tensors, with this pack's metadata."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = checkpoint.metadata | {"instaflow.unet_config": json.dumps(checkpoint.unet_config)}
    save_file(checkpoint.unet, path, metadata)


def save_lora(path: Path) -> None:
    """A rank-1 LoRA (kohya's layout) on one layer of the UNet and one of the text encoder."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(3)
    layers = {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q": 96,
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj": 64,
    }
    tensors: dict[str, Tensor] = {}
    for name, width in layers.items():
        tensors[f"{name}.lora_down.weight"] = torch.randn(1, width, generator=generator)
        tensors[f"{name}.lora_up.weight"] = torch.randn(width, 1, generator=generator)
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def _weights(module: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}


def _text_weights(module: Any) -> dict[str, Tensor]:
    """Under `text_model.`, which newer versions of transformers leave out."""
    weights = _weights(module)
    return {name if name.startswith("text_model.") else f"text_model.{name}": w for name, w in weights.items()}


def _config(module: Any) -> dict[str, Any]:
    return json.loads(module.to_json_string())
