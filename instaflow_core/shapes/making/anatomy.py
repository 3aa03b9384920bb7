"""The built-in model's parts: Stable Diffusion 1.5's anatomy, only small."""

from typing import Any

import torch

TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 64,
    "intermediate_size": 256,
    "projection_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
UNET_CONFIG: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 96),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 64,
    "attention_head_dim": 2,  # diffusers' name for the number of heads
    "norm_num_groups": 32,  # what the host's UNet has
}
VAE_CONFIG: dict[str, Any] = {
    "encoder_block_out_channels": (64, 64, 64, 64),
    "decoder_block_out_channels": (64, 64, 64, 64),
    "num_encoder_blocks": (1, 3, 3, 3),
    "num_decoder_blocks": (3, 3, 3, 1),
    "latent_channels": 4,
    "scaling_factor": 1.0,
}
NATIVE_SIZE = 64
LATENT_SHAPE = (4, 8, 8)


def new_text_encoder(seed: int) -> Any:
    """An untrained CLIP-style text transformer of this anatomy."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return _seeded(seed, lambda: CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG)))


def new_unet(seed: int) -> Any:
    """An untrained UNet of this anatomy."""
    from diffusers import UNet2DConditionModel

    return _seeded(seed, lambda: UNet2DConditionModel(**UNET_CONFIG))


def new_vae(seed: int) -> Any:
    """An untrained autoencoder of TAESD's shape."""
    from diffusers import AutoencoderTiny

    return _seeded(seed, lambda: AutoencoderTiny(**VAE_CONFIG))


def _seeded(seed: int, build: Any) -> Any:
    """Build a module whose libraries initialise it from the global generator, and put that generator back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
